//! The manual's page about platforms: its tables are what the machines showed, between two markers
//! per architecture. The last result of each kernel is kept beside what is built, so that kernels
//! can be tried one by one.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::kernels::KERNELS;
use super::qemu::Architecture;

/// The page, from the workspace's root.
pub(crate) const PAGE: &str = "docs/platforms.md";

/// The longest line of the page, where words can be broken.
const WIDTH: usize = 100;

/// Adds new results to those that are kept, in the order of kernels, and returns all.
pub(crate) fn keep(kept: &Path, new: &Value) -> Result<Vec<Value>> {
    let old =
        fs::read_to_string(kept).ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let lists = [new, old.as_ref().unwrap_or(&Value::Null)];
    let mut all = Vec::new();
    for kernel in &KERNELS {
        let mut results =
            lists.iter().flat_map(|list| list["kernels"].as_array().into_iter().flatten());
        all.extend(results.find(|result| result["kernel"] == kernel.name).cloned());
    }
    let text = serde_json::to_string_pretty(&json!({"schema": 1, "kernels": all}))?;
    if let Some(parent) = kept.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(kept, text).with_context(|| format!("cannot write {}", kept.display()))?;
    Ok(all)
}

/// Writes results between the markers of this architecture.
pub(crate) fn write(page: &Path, kernels: &[Value], architecture: Architecture) -> Result<()> {
    let text =
        fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let name = architecture.name();
    let [begin, end] = ["begin", "end"].map(|word| format!("<!-- machines {name}: {word} -->\n"));
    let new = section(kernels, architecture);
    let text = replace(&text, &begin, &end, &new)
        .with_context(|| format!("{} is not as it was", page.display()))?;
    fs::write(page, text).with_context(|| format!("cannot write {}", page.display()))
}

/// The text with what stands between the markers replaced.
fn replace(text: &str, begin: &str, end: &str, new: &str) -> Result<String> {
    let Some((before, rest)) = text.split_once(begin) else { bail!("no marker {}", begin.trim()) };
    let Some((_, after)) = rest.split_once(end) else { bail!("no marker {}", end.trim()) };
    Ok(format!("{before}{begin}{new}{end}{after}"))
}

fn words<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

/// The kernel's version without what the distribution adds.
fn version(kernel: &Value) -> &str {
    words(kernel, "release").split(['-', '+']).next().unwrap_or_default()
}

fn section(kernels: &[Value], architecture: Architecture) -> String {
    let option = if architecture == Architecture::Amd64 { "" } else { " --arch arm64 --cloud" };
    let mut text = wrap(&format!(
        "Written by `cargo xtask machines{option} --docs`. Each cell: the mode that `run` chose by \
         itself, and what \
         reads the server's responses; a number of failed checks stands beside it where there are \
         any."
    ));
    let titles: Vec<_> = kernels.iter().map(version).collect();
    text.push_str(&format!(
        "\n| interface | {} |\n|---{}|\n",
        titles.join(" | "),
        "|---".repeat(kernels.len())
    ));
    for name in interfaces(kernels) {
        let cells: Vec<_> = kernels.iter().map(|kernel| cell(kernel, &name)).collect();
        text.push_str(&format!("| {name} | {} |\n", cells.join(" | ")));
    }
    text.push_str(
        "\n| kernel | whose | instructions verified, at most | ready after | tried \
         |\n|---|---|---|---|---|\n",
    );
    for kernel in kernels {
        let most = list(kernel, "interfaces")
            .filter_map(|row| row["verifier_instructions"].as_u64())
            .max();
        let ready = list(kernel, "interfaces")
            .filter_map(|row| row["ready_seconds"].as_f64())
            .fold(0.0, f64::max);
        text.push_str(&format!(
            "| {} | {} | {} | {ready:.1} s, {} | {} |\n",
            words(kernel, "release"),
            words(kernel, "platform"),
            most.map_or("not said".to_owned(), |most| most.to_string()),
            words(kernel, "accelerator"),
            words(kernel, "date"),
        ));
    }
    let reasons: Vec<_> =
        interfaces(kernels).into_iter().filter_map(|name| reason(kernels, name)).collect();
    if !reasons.is_empty() {
        text.push_str("\nWhy generic mode, in the words of the log:\n\n");
        reasons.iter().for_each(|reason| text.push_str(&wrap(reason)));
    }
    let faults: Vec<_> = kernels.iter().flat_map(faults).collect();
    if !faults.is_empty() {
        text.push_str("\nNot right:\n\n");
        faults.iter().for_each(|fault| text.push_str(&wrap(fault)));
    }
    text
}

/// The interfaces that any kernel was tried with, in order.
fn interfaces(kernels: &[Value]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for row in kernels.iter().flat_map(|kernel| list(kernel, "interfaces")) {
        let name = words(row, "interface");
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

fn cell(kernel: &Value, name: &str) -> String {
    let Some(row) = list(kernel, "interfaces").find(|row| words(row, "interface") == name) else {
        return String::new();
    };
    let failed = list(row, "checks").filter(|check| check["right"] != true).count();
    let way = match (words(row, "mode"), words(row, "egress")) {
        ("", _) => "not filtered".to_owned(),
        (mode, egress) => format!("{mode}, {egress}"),
    };
    if failed > 0 { format!("{way} ({failed} failed)") } else { way }
}

/// Why an interface is filtered in generic mode: the newest kernel's words.
fn reason(kernels: &[Value], name: String) -> Option<String> {
    let mut rows = kernels.iter().rev().flat_map(|kernel| list(kernel, "interfaces"));
    let row = rows.find(|row| words(row, "interface") == name && row["reason"].is_string())?;
    Some(format!("- **{name}**: {}", words(row, "reason").replace('<', "&lt;")))
}

fn faults(kernel: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    for row in list(kernel, "interfaces") {
        let place = format!("- {}, {}", version(kernel), words(row, "interface"));
        if let Some(error) = row["error"].as_str() {
            faults.push(format!("{place}: {error}"));
        }
        for check in list(row, "checks").filter(|check| check["right"] != true) {
            faults.push(format!("{place}, {}: {}", words(check, "check"), words(check, "detail")));
        }
    }
    faults
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

    #[test]
    fn the_last_result_of_each_kernel_is_kept() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let kept = directory.path().join("kept.json");
        let result =
            |kernel: &str, date: &str| json!({"kernels": [{"kernel": kernel, "date": date}]});
        keep(&kept, &result("6.12", "1"))?;
        keep(&kept, &result("6.1", "2"))?;
        let all = keep(&kept, &result("6.12", "3"))?;
        let kernels: Vec<_> =
            all.iter().map(|kernel| (words(kernel, "kernel"), words(kernel, "date"))).collect();
        assert_eq!(kernels, [("6.1", "2"), ("6.12", "3")]);
        Ok(())
    }

    #[test]
    fn a_page_has_cells_reasons_and_faults() {
        let kernel = json!({
            "kernel": "6.12", "release": "6.12.1+deb13-amd64", "platform": "Debian 13",
            "interfaces": [
                {"interface": "igb", "mode": "native", "egress": "tcx", "checks": [{"check": "run", "right": true}]},
                {"interface": "VLAN", "mode": "generic", "egress": "tcx", "reason": "not supported",
                 "checks": [{"check": "unload", "right": false, "detail": "1 program more"}]},
            ],
        });
        let text = section(&[kernel], Architecture::Amd64);
        for line in [
            "| interface | 6.12.1 |",
            "| igb | native, tcx |",
            "| VLAN | generic, tcx (1 failed) |",
            "- **VLAN**: not supported",
            "- 6.12.1, VLAN, unload: 1 program more",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
