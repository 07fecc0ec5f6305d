//! The blocks of code in the README, which tests execute and load, so that they cannot rot.

use std::path::Path;

use anyhow::{Context, Result};

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

/// All fenced blocks of a checkout's README, in order.
pub fn read(checkout: &Path) -> Result<Vec<Block>> {
    let path = checkout.join("README.md");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(blocks(&text))
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
