//! What holds for every Markdown file: links lead somewhere, and lines end at 100 columns.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Folders that hold no source.
const SKIPPED: [&str; 2] = ["target", ".git"];

/// Files under a folder whose names end like this.
fn files(folder: &Path, end: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if !SKIPPED.contains(&&*name) {
                files(&path, end, found)?;
            }
        } else if path.extension().is_some_and(|extension| extension == end) {
            found.push(path);
        }
    }
    Ok(())
}

/// Lines outside of fenced blocks, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    text.lines().enumerate().filter_map(move |(at, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        (!is_code && !is_fence).then_some((at + 1, line))
    })
}

/// The name by which a heading is linked to, as mdBook and GitHub make it.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim();
    let kept = heading.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        c if c.is_alphanumeric() => Some(c),
        _ => None,
    });
    kept.collect::<String>().to_lowercase()
}

fn anchors(text: &str) -> BTreeSet<String> {
    prose(text).filter(|(_, line)| line.starts_with('#')).map(|(_, line)| anchor(line)).collect()
}

/// Targets of a line's links.
fn targets(line: &str) -> Vec<&str> {
    let behind = line.split("](").skip(1);
    behind.filter_map(|rest| rest.split_once(')').map(|(target, _)| target)).collect()
}

/// Links between files that lead nowhere, one line each.
pub(crate) fn broken_links(root: &Path) -> Result<Vec<String>> {
    let mut pages = Vec::new();
    files(root, "md", &mut pages)?;
    let mut broken = Vec::new();
    for page in &pages {
        let text = fs::read_to_string(page)?;
        for (number, line) in prose(&text) {
            for target in targets(line).into_iter().filter(|target| !target.contains("://")) {
                let (file, name) = target.split_once('#').unwrap_or((target, ""));
                let folder = page.parent().context("a page is in a folder")?;
                let path = if file.is_empty() { page.clone() } else { folder.join(file) };
                let is_there = path.exists()
                    && (name.is_empty() || anchors(&fs::read_to_string(&path)?).contains(name));
                if !is_there {
                    broken.push(format!("{}:{number}: {target}", page.display()));
                }
            }
        }
    }
    Ok(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What contributors' terminals and reviews show without wrapping.
    const COLUMNS: usize = 100;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    fn long_lines(end: &str) -> Vec<String> {
        let mut found = Vec::new();
        files(&root(), end, &mut found).unwrap();
        assert!(found.len() > 5, "there are files that end with .{end}");
        let long = |path: &PathBuf| {
            let text = fs::read_to_string(path).unwrap();
            let lines = text.lines().enumerate();
            let is_long = |(_, line): &(usize, &str)| {
                line.chars().count() > COLUMNS && !(end == "md" && line.starts_with('|'))
            };
            let lines = lines.filter(is_long);
            lines.map(|(at, _)| format!("{}:{}", path.display(), at + 1)).collect::<Vec<_>>()
        };
        found.iter().flat_map(long).collect()
    }

    #[test]
    fn lines_of_markdown_end_at_100_columns() {
        let long = long_lines("md");
        assert!(long.is_empty(), "longer than {COLUMNS} columns:\n{}", long.join("\n"));
    }

    #[test]
    fn lines_of_rust_end_at_100_columns() {
        let long = long_lines("rs");
        assert!(long.is_empty(), "longer than {COLUMNS} columns:\n{}", long.join("\n"));
    }

    #[test]
    fn every_link_leads_somewhere() {
        let broken = broken_links(&root()).unwrap();
        assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
    }

    #[test]
    fn broken_links_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let page = folder.path().join("page.md");
        let text = "# A *heading*, `code`\n[a](page.md#a-heading-code) [b](#nothing) [c](none.md)\n\
                    [d](https://example.com)\n```text\n[e](nowhere.md)\n```\n";
        fs::write(&page, text).unwrap();
        let page = page.display();
        assert_eq!(
            broken_links(folder.path()).unwrap(),
            [format!("{page}:2: #nothing"), format!("{page}:2: none.md")]
        );
    }

    #[test]
    fn every_chapter_is_in_the_table_of_contents() {
        let docs = root().join("docs");
        let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
        let mut pages = Vec::new();
        files(&docs, "md", &mut pages).unwrap();
        for page in pages.iter().filter(|page| !page.ends_with("SUMMARY.md")) {
            let name = page.strip_prefix(&docs).unwrap().display();
            assert!(summary.contains(&format!("]({name})")), "SUMMARY.md lacks {name}");
        }
    }
}
