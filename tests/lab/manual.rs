//! The blocks of code in the README and in the manual, which tests execute and load, so that they
//! stay right.

use std::path::Path;

use anyhow::{Context, Result};

/// What is executed block by block, in this order: how the program is built, installed and used.
pub const EXECUTED: [&str; 2] = ["README.md", "docs/quick-start.md"];

/// Commands here are for other systems; `cargo xtask package --test` tries them in its own way.
pub const FOR_OTHER_SYSTEMS: &str = "docs/installing.md";

/// A block of code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The heading that it stands under, without the signs in front.
    pub heading: String,
    /// What is said behind the opening fence.
    pub language: String,
    /// What is inside.
    pub text: String,
}

/// The README and the chapters of the manual, as paths in the checkout.
pub fn pages(checkout: &Path) -> Result<Vec<String>> {
    let mut pages: Vec<String> = EXECUTED.map(str::to_owned).to_vec();
    for folder in ["docs", "docs/reference"] {
        let path = checkout.join(folder);
        let entries =
            std::fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut names = Vec::new();
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            names.extend(name.ends_with(".md").then(|| format!("{folder}/{name}")));
        }
        names.sort();
        pages.extend(names.into_iter().filter(|name| !EXECUTED.contains(&name.as_str())));
    }
    Ok(pages)
}

/// All fenced blocks of these pages, in order.
pub fn read<'a>(checkout: &Path, pages: impl IntoIterator<Item = &'a str>) -> Result<Vec<Block>> {
    let mut found = Vec::new();
    for page in pages {
        let path = checkout.join(page);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        found.extend(blocks(&text));
    }
    Ok(found)
}

/// All fenced blocks of a text.
pub fn blocks(text: &str) -> Vec<Block> {
    let mut heading = "";
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(language)) => {
                let language = language.trim().to_owned();
                open = Some(Block { heading: heading.to_owned(), language, text: String::new() });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) if line.starts_with('#') => heading = line.trim_start_matches('#').trim(),
            (None, None) => {}
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_know_where_they_stand() {
        let text =
            "# One\n```sh\na\n# no heading\n```\ntext\n## Two\n```\nb\n```\n```toml\nunfinished\n";
        let block = |heading: &str, language: &str, text: &str| Block {
            heading: heading.to_owned(),
            language: language.to_owned(),
            text: text.to_owned(),
        };
        assert_eq!(
            blocks(text),
            [block("One", "sh", "a\n# no heading\n"), block("Two", "", "b\n")]
        );
    }
}
