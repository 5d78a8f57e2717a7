//! What `tapline inspect` and `tapline network inspect` have in common: documents as JSON or as a table, and the parts of
//! them that `--get` asks for.
//!
//! A path names a part: keys and places in lists, joined by dots, `endpoints.0.v4`. A key that has dots itself is found
//! all the same, the longest first. `.endpoints[0].v4`, as other tools write it, is understood too. A table has a row for each part that has no parts itself, under the path that `--get`
//! would take.
use anyhow::anyhow;
use clap::{Args, ValueEnum};
use comfy_table::{Table, presets};
use serde_json::Value;

use super::error::{self, FAILED, Failure};
use super::output;

/// How documents are shown.
#[derive(Args, Debug, Default)]
pub struct Show {
    /// JSON, or a table of what each path leads to
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Json)]
    format: Format,

    /// Only what this path leads to: keys and places in lists joined by dots, like endpoints.0.v4
    ///
    /// Text and numbers are printed bare, what is not there as an empty line, the rest as JSON.
    #[arg(long, value_name = "PATH", conflicts_with = "format")]
    get: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A JSON document; a list of them when several names are given
    #[default]
    Json,
    /// A row for each path
    Table,
}

/// Shows the documents of these names. One that cannot be had does not keep the others.
pub fn show_all(
    show: &Show,
    names: &[String],
    document: impl Fn(&str) -> Result<Value, Failure>,
) -> Result<i32, Failure> {
    let mut documents = Vec::new();
    let mut status = 0;
    for name in names {
        match document(name) {
            Ok(document) => documents.push(document),
            Err(failure) if names.len() == 1 => return Err(failure),
            Err(failure) => status = failure.report(),
        }
    }
    let text = match (&show.get, show.format) {
        (Some(path), _) => {
            let mut text = String::new();
            for document in &documents {
                match get(document, path) {
                    Ok(part) => text.push_str(&bare(part)?),
                    Err(why) if names.len() == 1 => return Err(anyhow!(why).into()),
                    Err(why) => {
                        error::say(&why);
                        status = FAILED.into();
                    }
                }
            }
            text
        }
        (None, Format::Table) => documents.iter().map(table).collect::<Vec<_>>().join("\n"),
        (None, Format::Json) => match (names.len(), documents.pop()) {
            (1, Some(document)) => pretty(&document)?,
            (_, last) => pretty(&Value::Array(documents.into_iter().chain(last).collect()))?,
        },
    };
    output::print(&text)?;
    Ok(status)
}

fn pretty(value: &Value) -> Result<String, Failure> {
    Ok(serde_json::to_string_pretty(value).map_err(anyhow::Error::from)? + "\n")
}

/// A part as `--get` prints it.
fn bare(part: &Value) -> Result<String, Failure> {
    match part {
        Value::Object(_) | Value::Array(_) => pretty(part),
        leaf => Ok(scalar(leaf) + "\n"),
    }
}

fn scalar(leaf: &Value) -> String {
    match leaf {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What a path leads to; otherwise what there is where it ends, for the person.
fn get<'d>(document: &'d Value, path: &str) -> Result<&'d Value, String> {
    if path == "." {
        return Ok(document);
    }
    let path = path.strip_prefix('.').unwrap_or(path);
    let path = with_dots(path);
    let words: Vec<&str> = path.split('.').collect();
    let (mut here, mut done) = (document, 0);
    while done < words.len() {
        let next = match here {
            Value::Object(map) => {
                (done + 1..=words.len()).rev().find_map(|end| Some((map.get(&words[done..end].join("."))?, end)))
            }
            Value::Array(list) => words[done].parse::<usize>().ok().and_then(|at| Some((list.get(at)?, done + 1))),
            _ => None,
        };
        (here, done) = next.ok_or_else(|| no_such(here, &words, done))?;
    }
    Ok(here)
}

/// `a[0].b` as `a.0.b`.
fn with_dots(path: &str) -> String {
    let mut text = path.to_owned();
    for (at, _) in path.rmatch_indices('[') {
        let digits = path[at + 1..].bytes().take_while(u8::is_ascii_digit).count();
        let end = at + 1 + digits;
        if digits > 0 && path[end..].starts_with(']') {
            text.replace_range(end..=end, "");
            text.replace_range(at..=at, ".");
        }
    }
    text
}

fn no_such(here: &Value, words: &[&str], done: usize) -> String {
    let place = match done {
        0 => String::new(),
        _ => format!(" in `{}`", words[..done].join(".")),
    };
    let there = match here {
        Value::Object(map) if map.is_empty() => "nothing is there".to_owned(),
        Value::Object(map) => format!("there are {}", map.keys().cloned().collect::<Vec<_>>().join(", ")),
        Value::Array(list) if list.is_empty() => "the list is empty".to_owned(),
        Value::Array(list) if list.len() == 1 => "the list has one place, 0".to_owned(),
        Value::Array(list) => format!("the list has the places 0 to {}", list.len() - 1),
        _ => "it has no parts".to_owned(),
    };
    format!("there is no `{}`{place}: {there}", words[done])
}

fn table(document: &Value) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    add_rows(&mut table, String::new(), document);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt() + "\n"
}

fn add_rows(table: &mut Table, path: String, value: &Value) {
    let under = |part: &str| if path.is_empty() { part.to_owned() } else { format!("{path}.{part}") };
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(key, value)| add_rows(table, under(key), value));
        }
        Value::Array(list) if list.iter().any(|part| part.is_object() || part.is_array()) => {
            list.iter().enumerate().for_each(|(at, value)| add_rows(table, under(&at.to_string()), value));
        }
        Value::Array(list) => add_row(table, path, &list.iter().map(scalar).collect::<Vec<_>>().join(" ")),
        Value::Null | Value::Object(_) => add_row(table, path, "-"),
        leaf => add_row(table, path, &scalar(leaf)),
    }
}

/// Without anything that could move the terminal's cursor.
fn add_row(table: &mut Table, path: String, text: &str) {
    let text = if text.is_empty() { "-" } else { text };
    table.add_row([path, text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document() -> Value {
        json!({
            "name": "web", "pid": 7, "v6": null, "ports": [],
            "endpoints": [{ "v4": "10.9.0.2", "aliases": ["a", "b"] }],
            "labels": { "com.example": "short", "com.example.x": "long" },
        })
    }

    #[test]
    fn a_path_leads_through_keys_and_lists() {
        let document = document();
        let of = |path| get(&document, path).map(|part| bare(part).unwrap());
        assert_eq!(of("name"), Ok("web\n".into()));
        assert_eq!(of("pid"), Ok("7\n".into()));
        assert_eq!(of("v6"), Ok("\n".into()));
        assert_eq!(of("endpoints.0.v4"), Ok("10.9.0.2\n".into()));
        assert_eq!(of("endpoints.0.aliases"), Ok("[\n  \"a\",\n  \"b\"\n]\n".into()));
        assert_eq!(of("labels.com.example.x"), Ok("long\n".into()));
        assert_eq!(of("labels.com.example"), Ok("short\n".into()));
        assert_eq!(of(".endpoints[0].v4"), Ok("10.9.0.2\n".into()));
        assert_eq!(of(".endpoints[0].aliases[1]"), Ok("b\n".into()));
        assert_eq!(get(&document, "."), Ok(&document));
    }

    #[test]
    fn a_path_that_leads_nowhere_is_answered_with_what_there_is() {
        let document = document();
        let of = |path| get(&document, path).unwrap_err();
        assert_eq!(of("nam"), "there is no `nam`: there are endpoints, labels, name, pid, ports, v6");
        assert_eq!(of("endpoints.1"), "there is no `1` in `endpoints`: the list has one place, 0");
        assert_eq!(of("ports.0"), "there is no `0` in `ports`: the list is empty");
        assert_eq!(of("endpoints.0.mac"), "there is no `mac` in `endpoints.0`: there are aliases, v4");
        assert_eq!(of("endpoints[x]"), "there is no `endpoints[x]`: there are endpoints, labels, name, pid, ports, v6");
        assert_eq!(of("pid.x"), "there is no `x` in `pid`: it has no parts");
        assert_eq!(of(""), "there is no ``: there are endpoints, labels, name, pid, ports, v6");
    }

    #[test]
    fn a_table_has_a_row_for_each_path() {
        let text = table(&document());
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(rows.contains(&vec!["endpoints.0.v4", "10.9.0.2"]), "{text}");
        assert!(rows.contains(&vec!["endpoints.0.aliases", "a", "b"]), "{text}");
        assert!(rows.contains(&vec!["ports", "-"]) && rows.contains(&vec!["v6", "-"]), "{text}");
    }
}
