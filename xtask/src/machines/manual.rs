//! The manual's page about platforms: its tables are what the machines showed, between two markers per architecture.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::qemu::Architecture;
use super::report::{self, Tried};

/// The page, from the workspace's root.
pub(crate) const PAGE: &str = "docs/platforms.md";

/// The longest line of the page, where words can be broken.
const WIDTH: usize = 100;

/// Writes what was found between the markers of this architecture.
pub(crate) fn write(
    page: &Path,
    tried: &[Tried],
    architecture: Architecture,
    date: &str,
    accelerator: &str,
) -> Result<()> {
    let text = fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let name = architecture.name();
    let [begin, end] = ["begin", "end"].map(|word| format!("<!-- machines {name}: {word} -->\n"));
    let new = section(tried, name, date, accelerator);
    let text = replace(&text, &begin, &end, &new).with_context(|| format!("{} has no {begin}", page.display()))?;
    fs::write(page, text).with_context(|| format!("cannot write {}", page.display()))
}

/// The text with what stands between the markers replaced.
fn replace(text: &str, begin: &str, end: &str, new: &str) -> Result<String> {
    let Some((before, rest)) = text.split_once(begin) else { bail!("no marker {}", begin.trim()) };
    let Some((_, after)) = rest.split_once(end) else { bail!("no marker {}", end.trim()) };
    Ok(format!("{before}{begin}{new}{end}{after}"))
}

fn section(tried: &[Tried], architecture: &str, date: &str, accelerator: &str) -> String {
    let option = if architecture == "amd64" { "" } else { " --arch arm64" };
    let mut text = wrap(&format!(
        "Tried on {date} with `cargo xtask machines{option} --docs`, machines run by {accelerator}. Each cell: the mode \
         that `run` chose by itself, and what reads the server's responses. A number of failed checks stands beside \
         it where there are any."
    ));
    text.push_str(&format!("\n{}\n", report::table(tried)));
    text.push_str(
        "| kernel | whose | instructions that the verifier looked at, at most | ready after |\n|---|---|---|---|\n",
    );
    for one in tried {
        let most = one.most_instructions().map_or("not said".to_owned(), |most| most.to_string());
        text.push_str(&format!(
            "| {} | {} | {most} | {:.1} s |\n",
            one.release,
            one.kernel.platform,
            one.slowest_start()
        ));
    }
    let reasons = report::reasons(tried);
    if !reasons.is_empty() {
        text.push_str("\nWhy generic mode, in the words of the log:\n\n");
        for (interface, reason) in reasons {
            text.push_str(&wrap(&format!("- **{interface}**: {}", reason.replace('<', "&lt;"))));
        }
    }
    let faults: Vec<_> = tried.iter().flat_map(Tried::faults).collect();
    if !faults.is_empty() {
        text.push_str("\nNot right:\n\n");
        for fault in faults {
            text.push_str(&wrap(&format!("- {}", fault.replace(" | ", ", "))));
        }
    }
    text
}

/// Breaks a paragraph or an item into lines.
fn wrap(paragraph: &str) -> String {
    let indent = if paragraph.starts_with("- ") { "  " } else { "" };
    let (mut text, mut column) = (String::new(), 0);
    for word in paragraph.split(' ') {
        let width = word.chars().count();
        if column > 0 && column + 1 + width > WIDTH {
            text.push_str(&format!("\n{indent}{word}"));
            column = indent.len() + width;
        } else {
            text.push_str(if column > 0 { " " } else { "" });
            text.push_str(word);
            column += width + usize::from(column > 0);
        }
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_markers_changes() {
        let page = "a\n<!-- b -->\nold\n<!-- e -->\nz\n";
        let new = replace(page, "<!-- b -->\n", "<!-- e -->\n", "new\n");
        assert_eq!(new.ok().as_deref(), Some("a\n<!-- b -->\nnew\n<!-- e -->\nz\n"));
        assert!(replace("a\n", "<!-- b -->\n", "<!-- e -->\n", "new\n").is_err());
    }

    #[test]
    fn lines_are_not_too_long() {
        let text = wrap(&format!("- {}", "word ".repeat(60).trim()));
        assert!(text.lines().all(|line| line.len() <= WIDTH));
        assert!(text.lines().skip(1).all(|line| line.starts_with("  word")));
    }
}
