//! What a manual page says of another tool's command line; [`cli`](crate::cli) writes it, as it writes tapline's own.

/// Terms, and what each means.
pub type Items = &'static [(&'static str, &'static str)];

/// A page.
#[derive(Clone, Copy, Debug)]
pub struct Manual {
    /// Its name: `tapline-pasta`.
    pub name: &'static str,
    /// One line on what it is.
    pub about: &'static str,
    /// Command lines, the program's name first.
    pub synopsis: &'static [&'static str],
    /// Paragraphs.
    pub description: &'static [&'static str],
    /// Options by what they are for.
    pub options: &'static [(&'static str, Items)],
    /// Further sections, in capitals, of paragraphs.
    pub notes: &'static [(&'static str, &'static [&'static str])],
    /// What for, and the command line.
    pub examples: Items,
    /// Exit statuses.
    pub exit_status: Items,
    /// Other pages.
    pub see_also: &'static str,
}
