//! The hidden `tapline man DIR`: writes the manual pages.
use std::io;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::error::Failure;
use super::pages::{self, Page};
use crate::compat::manual::Manual;
use crate::compat::pasta;

/// Pages of what neither clap nor a table describes, written by hand.
const WRITTEN: [(&str, &[u8]); 2] = [
    ("tapline-api.7", include_bytes!("../../man/tapline-api.7")),
    ("tapline-slirp4netns.1", include_bytes!("../../man/tapline-slirp4netns.1")),
];

/// Those of other tools' command lines that are made of a table.
const FOREIGN: &[Manual] = &[pasta::usage::MANUAL];

/// Write the manual pages to a directory
#[derive(Args, Debug)]
pub struct ManArgs {
    /// The directory, which must exist
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl ManArgs {
    /// Does it.
    pub fn execute(self) -> Result<i32, Failure> {
        for (name, text) in pages(super::command())? {
            let path = self.directory.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(0)
    }
}

/// All pages, by file name: tapline.1, one for each subcommand that help shows, and those written by hand.
pub fn pages(mut description: Command) -> io::Result<Vec<(String, Vec<u8>)>> {
    description.build();
    let mut all = vec![page(&description, pages::of(""))?];
    for verb in description.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        all.push(page(verb, pages::of(verb.get_name()))?);
        for inner in verb.get_subcommands().filter(|inner| !inner.is_hide_set()) {
            all.push(page(inner, pages::of(&format!("{} {}", verb.get_name(), inner.get_name())))?);
        }
    }
    all.extend(WRITTEN.map(|(name, text)| (name.to_owned(), text.to_vec())));
    for manual in FOREIGN {
        all.push(foreign(manual)?);
    }
    Ok(all)
}

/// The page of another tool's command line.
fn foreign(manual: &Manual) -> io::Result<(String, Vec<u8>)> {
    let mut roff = Roff::default();
    let version = concat!("tapline ", env!("CARGO_PKG_VERSION"));
    roff.control("TH", [manual.name.to_uppercase().as_str(), "1", "", version, "tapline's manual"]);
    roff.control("SH", ["NAME"]);
    roff.text([roman(format!("{} - {}", manual.name, manual.about))]);
    roff.control("SH", ["SYNOPSIS"]);
    for (number, line) in manual.synopsis.iter().enumerate() {
        if number > 0 {
            roff.control("br", []);
        }
        let (program, rest) = line.split_once(' ').unwrap_or((line, ""));
        roff.text([bold(program), roman(format!(" {rest}"))]);
    }
    paragraphs(&mut roff, "DESCRIPTION", manual.description);
    roff.control("SH", ["OPTIONS"]);
    for (title, options) in manual.options {
        roff.control("SS", [*title]);
        terms(&mut roff, options);
    }
    for (title, text) in manual.notes {
        paragraphs(&mut roff, title, text);
    }
    examples(&mut roff, manual.examples);
    roff.control("SH", ["EXIT STATUS"]);
    terms(&mut roff, manual.exit_status);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(manual.see_also)]);
    let mut text = Vec::new();
    roff.to_writer(&mut text)?;
    Ok((format!("{}.1", manual.name), text))
}

fn paragraphs(roff: &mut Roff, title: &str, text: &[&str]) {
    roff.control("SH", [title]);
    for (number, paragraph) in text.iter().enumerate() {
        if number > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(*paragraph)]);
    }
}

fn examples(roff: &mut Roff, examples: &[(&str, &str)]) {
    roff.control("SH", ["EXAMPLES"]);
    for (purpose, line) in examples {
        roff.control("PP", []);
        roff.text([roman(*purpose)]);
        roff.control("PP", []);
        roff.control("RS", ["4"]);
        roff.control("nf", []);
        roff.text([bold(*line)]);
        roff.control("fi", []);
        roff.control("RE", []);
    }
}

fn terms(roff: &mut Roff, items: &[(&str, &str)]) {
    for (term, meaning) in items {
        roff.control("TP", []);
        roff.text([bold(*term)]);
        roff.text([roman(*meaning)]);
    }
}

fn page(command: &Command, extra: &Page) -> io::Result<(String, Vec<u8>)> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    // "tapline run" and "tapline-run": the name as people look for it.
    let named = command.clone().name(name.clone()).version(env!("CARGO_PKG_VERSION"));
    let man = Man::new(named)
        .title(name.to_uppercase())
        .source(concat!("tapline ", env!("CARGO_PKG_VERSION")))
        .manual("tapline's manual");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.get_subcommands().any(|verb| !verb.is_hide_set()) {
        man.render_subcommands_section(&mut text)?;
    }
    let mut roff = Roff::default();
    examples(&mut roff, extra.examples);
    for (title, items) in
        [("EXIT STATUS", extra.exit_status), ("FILES", extra.files), ("ENVIRONMENT", extra.environment)]
    {
        if items.is_empty() {
            continue;
        }
        roff.control("SH", [title]);
        terms(&mut roff, items);
    }
    roff.control("SH", ["SEE ALSO"]);
    let others: Vec<String> = pages::PAGES
        .iter()
        .map(|page| match page.verb {
            "" => "tapline(1)".to_owned(),
            verb => format!("tapline-{}(1)", verb.replace(' ', "-")),
        })
        .filter(|other| *other != format!("{name}(1)"))
        .chain(["slirp4netns(1)", "pasta(1)", "api(7)"].map(|other| format!("tapline-{other}")))
        .collect();
    roff.text([roman(others.join(", "))]);
    roff.to_writer(&mut text)?;
    Ok((format!("{name}.1"), text))
}
