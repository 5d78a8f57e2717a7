//! Points in time as people write them: RFC 3339, in UTC, to the second.

/// `2026-11-21T16:05:00Z` for seconds since 1970.
pub fn rfc3339(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// Seconds since 1970 of a date and a time in UTC that are in their ranges; 0 for what is before 1970.
pub fn seconds(year: u16, month: u8, day: u8, hour: u8, minute: u8, second: u8) -> u64 {
    let time = u64::from(hour) * 3600 + u64::from(minute) * 60 + u64::from(second);
    days(year, month, day).map_or(0, |days| days * 86_400 + time)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, counted in years that begin in March: the leap day is
/// then the last of its year.
fn days(year: u16, month: u8, day: u8) -> Option<u64> {
    let (month, day) = (u64::from(month), u64::from(day));
    let year = u64::from(year) - u64::from(month <= 2 && year > 0);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    (year * 365 + year / 4 - year / 100 + year / 400 + of_year).checked_sub(719_468)
}

/// The date so many days after 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates_are_written_and_read() {
        for (at, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_000_000_000, "2001-09-09T01:46:40Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(at), text);
            let part = |from: usize, to: usize| text[from..to].parse::<u16>().unwrap();
            let small = |from| u8::try_from(part(from, from + 2)).unwrap();
            assert_eq!(seconds(part(0, 4), small(5), small(8), small(11), small(14), small(17)), at);
        }
        assert_eq!(seconds(1969, 12, 31, 0, 0, 0), 0);
    }
}
