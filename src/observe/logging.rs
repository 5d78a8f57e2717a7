//! What is said on standard error, and how.
//!
//! Text, one line for each event and no time (`tapline: warning: cannot open /dev/net/tun: ...`), or JSON lines
//! with one, for machines. At the usual verbosity only warnings and errors are said; each `-v` adds a level, `-q`
//! leaves errors. The process that starts another hands its choice on as arguments ([`arguments`]), and its log file,
//! where there is one, as standard error ([`stderr_of_child`]).
use std::ffi::OsString;
use std::fmt;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::{Mutex, OnceLock};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::{DefaultFields, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use super::logfile::{LogFile, LogWriter};
use crate::plan::Logging;

/// The log file that other processes are to write to as well, and its limit in bytes.
static SHARED: OnceLock<(OwnedFd, u64)> = OnceLock::new();

/// Begin to log to a file, and with `to_stderr` to standard error as well. Processes that are started later log to the
/// same file. As with [`init`], the first call counts.
pub fn init_file(logging: Logging, file: LogFile, to_stderr: bool) {
    if let Ok(shared) = file.duplicate() {
        let _ = SHARED.set((shared, file.limit()));
    }
    let writer = Mutex::new(LogWriter { file, to_stderr });
    let _ = tracing::subscriber::set_global_default(subscriber(logging, writer));
}

/// Begin to log to standard error, which is a log file of at most so many bytes.
pub fn init_as_file(logging: Logging, limit: u64) {
    match LogFile::of_stderr(limit) {
        Ok(file) => init_file(logging, file, false),
        Err(_) => init(logging),
    }
}

/// What a process that logs as this one does has as its standard error.
pub fn stderr_of_child() -> Stdio {
    SHARED.get().and_then(|(file, _)| file.try_clone().ok()).map_or_else(Stdio::inherit, Stdio::from)
}

/// Begin to log to standard error. The first call in a process counts; later ones change nothing.
pub fn init(logging: Logging) {
    // The only possible error is "there is one already".
    let _ = tracing::subscriber::set_global_default(subscriber(logging, std::io::stderr));
}

/// The same to any writer.
fn subscriber<W>(logging: Logging, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_max_level(max_level(logging.verbosity))
        .with_ansi(false)
        .log_internal_errors(false)
        .with_writer(writer);
    if logging.json {
        Box::new(builder.json().flatten_event(true).finish())
    } else {
        Box::new(builder.event_format(Line).finish())
    }
}

fn max_level(verbosity: i8) -> LevelFilter {
    match verbosity {
        i8::MIN..=-1 => LevelFilter::ERROR,
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        3.. => LevelFilter::TRACE,
    }
}

/// The options that say this choice on tapline's command line.
pub fn arguments(logging: Logging) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    if logging.verbosity < 0 {
        arguments.push("-q".into());
    }
    arguments.extend((0..logging.verbosity).map(|_| OsString::from("-v")));
    if logging.json {
        arguments.extend(["--log-format".into(), "json".into()]);
    }
    if let Some((_, limit)) = SHARED.get() {
        arguments.extend(["--log-size".into(), limit.to_string().into()]);
    }
    arguments
}

/// `tapline: warning: message field=value`, on one line whatever the message holds.
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = match *event.metadata().level() {
            Level::ERROR => "error: ",
            Level::WARN => "warning: ",
            Level::INFO => "",
            Level::DEBUG => "debug: ",
            Level::TRACE => "trace: ",
        };
        let mut text = String::new();
        DefaultFields::new().format_fields(Writer::new(&mut text), event)?;
        write!(writer, "tapline: {level}")?;
        // Control characters could come from elsewhere; a terminal must not obey them.
        for (n, part) in text.split(char::is_control).filter(|part| !part.is_empty()).enumerate() {
            write!(writer, "{}{part}", if n > 0 { " " } else { "" })?;
        }
        writeln!(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn said(logging: Logging, say: impl FnOnce()) -> String {
        let sink = Sink::default();
        let out = sink.clone();
        tracing::subscriber::with_default(subscriber(logging, move || out.clone()), say);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_is_one_line_without_a_time() {
        let text = said(Logging { verbosity: 0, json: false }, || {
            tracing::warn!(errno = 13, "cannot open /dev/net/tun:\npermission denied");
            tracing::info!("not said");
            tracing::error!("over");
        });
        assert_eq!(
            text,
            "tapline: warning: cannot open /dev/net/tun: permission denied errno=13\ntapline: error: over\n"
        );
    }

    #[test]
    fn quiet_leaves_errors_and_verbose_adds() {
        let say = || {
            tracing::error!("e");
            tracing::warn!("w");
            tracing::info!("i");
            tracing::debug!("d");
        };
        assert_eq!(said(Logging { verbosity: -1, json: false }, say), "tapline: error: e\n");
        assert_eq!(said(Logging { verbosity: 1, json: false }, say).lines().count(), 3);
        assert_eq!(said(Logging { verbosity: 2, json: false }, say).lines().count(), 4);
    }

    #[test]
    fn json_is_one_object_each_line() {
        let text = said(Logging { verbosity: 0, json: true }, || tracing::warn!(port = 53, "two\nlines"));
        let value: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!((value["level"].as_str(), value["message"].as_str()), (Some("WARN"), Some("two\nlines")));
        assert_eq!(value["port"], 53);
        assert!(value["timestamp"].is_string());
    }

    #[test]
    fn the_choice_is_handed_on() {
        assert_eq!(arguments(Logging { verbosity: 0, json: false }), Vec::<OsString>::new());
        assert_eq!(arguments(Logging { verbosity: 2, json: true }), ["-v", "-v", "--log-format", "json"]);
        assert_eq!(arguments(Logging { verbosity: -1, json: false }), ["-q"]);
    }
}
