//! Chapters of the manual that are generated from the code, shared by the tests of the library and
//! of the program. Each chapter is made by a test called `the_chapter_of_...`: it fails when the
//! file in `docs/reference` differs, and writes the file when `SIP_XDP_BLESS` is set, as
//! `cargo xtask docs` does.

use std::fs;
use std::path::Path;

/// Compares a chapter with its file, or writes it. `name` is the file's name without `.md`.
pub(crate) fn compare(name: &str, title: &str, body: &str) {
    let text = format!(
        "# {title}\n\n<!-- Generated from the code by `cargo xtask docs`. Do not edit. -->\n\n{}\n",
        body.trim()
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../docs/reference/{name}.md"));
    if std::env::var_os("SIP_XDP_BLESS").is_some() {
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        return;
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    if let Some((number, (expected, line))) = text
        .lines()
        .zip(found.lines().chain(std::iter::repeat("")))
        .enumerate()
        .find(|(_, (expected, line))| expected != line)
    {
        panic!(
            "docs/reference/{name}.md is stale: run `cargo xtask docs`\nline {}: {line}\nexpected: \
             {expected}",
            number + 1
        );
    }
    assert_eq!(text, found, "docs/reference/{name}.md is stale: run `cargo xtask docs`");
}

/// Text for a cell of a table: one line, no bar, no HTML tag.
pub(crate) fn cell(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    // Inside backticks nothing is HTML.
    let mut is_code = false;
    let escaped = text.chars().map(|c| {
        is_code ^= c == '`';
        if c == '<' && !is_code { "&lt;".to_owned() } else { c.to_string() }
    });
    escaped.collect()
}

/// Lines of at most 100 columns.
pub(crate) fn wrap(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().map(|line| line.chars().count()).unwrap_or_default();
        if line > 0 && line + 1 + word.chars().count() > 100 {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.join("\n")
}
