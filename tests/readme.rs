//! Each command line, flag and address of the README is one that there is.

const README: &str = include_str!("../README.md");

/// The command lines of the console blocks, without the prompt.
fn command_lines() -> Vec<&'static str> {
    let lines: Vec<&str> = README.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    assert!(lines.len() >= 10, "the README has lost its examples");
    lines
}

#[test]
fn every_command_line_parses() {
    for line in command_lines() {
        let parsed = tapline::cli::command().try_get_matches_from(line.split_whitespace());
        assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
    }
}

#[test]
fn every_flag_exists() {
    let description = tapline::cli::command();
    let mut known: Vec<&str> = vec!["help", "release"];
    known.extend(description.get_subcommands().flat_map(|verb| verb.get_arguments()).filter_map(|arg| arg.get_long()));
    for word in README.split(|c: char| !c.is_ascii_alphanumeric() && c != '-') {
        let Some(flag) = word.strip_prefix("--").filter(|flag| !flag.is_empty() && !flag.starts_with('-')) else {
            continue;
        };
        assert!(known.contains(&flag), "--{flag}");
    }
}

#[test]
fn every_address_of_the_network_is_the_plans() {
    let v4 = tapline::plan::Ipv4Layout::slirp(tapline::plan::subnet::DEFAULT_SUBNET).unwrap();
    let v6 = tapline::plan::Ipv6Layout::slirp(tapline::plan::subnet::DEFAULT_SUBNET6).unwrap();
    let known: Vec<String> = [v4.gateway, v4.dns, v4.sandbox].iter().map(|ip| ip.to_string()).collect();
    let known6: Vec<String> = [v6.gateway, v6.dns, v6.sandbox].iter().map(|ip| ip.to_string()).collect();
    let words =
        README.split(|c: char| !c.is_ascii_hexdigit() && !matches!(c, ':' | '.')).map(|w| w.trim_end_matches('.'));
    let found: Vec<&str> = words.filter(|word| word.starts_with("10.0.2.") || word.starts_with("fd00::")).collect();
    for address in known.iter().chain(&known6) {
        assert!(found.contains(&address.as_str()), "the README does not name {address}");
    }
    for word in found {
        assert!(known.iter().chain(&known6).any(|address| address == word), "{word} is not the plan's");
    }
}
