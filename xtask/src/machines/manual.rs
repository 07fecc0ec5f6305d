//! The manual's page about platforms: tables of the machines' results, between two markers per
//! architecture. The last result of each kernel is kept in the target directory, so that kernels
//! can be tested one by one.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::qemu::Architecture;

/// The page, from the workspace's root.
pub(crate) const PAGE: &str = "docs/platforms.md";

/// The longest line of the page, where words can be broken.
const WIDTH: usize = 100;

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

pub(super) fn words<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

pub(super) fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

/// The kernel's version without what the distribution adds.
pub(super) fn version(kernel: &Value) -> &str {
    words(kernel, "release").split(['-', '+']).next().unwrap_or_default()
}

fn section(kernels: &[Value], architecture: Architecture) -> String {
    let mut text = wrap(
        "Written by `cargo xtask machines --docs`. Each cell: the mode that `run` chose by itself, \
         and what reads the server's responses; a number of failed checks stands beside it where \
         there are any. An empty cell was not tried; a star marks a cell that was tried with an \
         earlier build than the newest cell of the page.",
    );
    let newest = newest_binary(kernels);
    let titles: Vec<_> = kernels.iter().map(version).collect();
    text.push_str(&format!(
        "\n| interface | {} |\n|---{}|\n",
        titles.join(" | "),
        "|---".repeat(kernels.len())
    ));
    for name in interfaces(kernels) {
        let cells: Vec<_> = kernels.iter().map(|kernel| cell(kernel, &name, newest)).collect();
        text.push_str(&format!("| {name} | {} |\n", cells.join(" | ")));
    }
    text.push_str(
        "\n| kernel | whose | instructions verified, at most | loaded in | ready after | tried |\n\
         |---|---|---|---|---|---|\n",
    );
    for kernel in kernels {
        let most = list(kernel, "interfaces")
            .filter_map(|row| row["verifier_instructions"].as_u64())
            .max();
        let longest = |key: &str| {
            list(kernel, "interfaces").filter_map(|row| row[key].as_f64()).fold(0.0, f64::max)
        };
        text.push_str(&format!(
            "| {} | {} | {} | {:.1} s | {:.1} s, {} | {} |\n",
            words(kernel, "release"),
            words(kernel, "platform"),
            most.map_or("not said".to_owned(), |most| most.to_string()),
            longest("load_seconds"),
            longest("ready_seconds"),
            words(kernel, "accelerator"),
            when(kernel, architecture),
        ));
    }
    let reasons: Vec<_> =
        interfaces(kernels).into_iter().filter_map(|name| reason(kernels, name)).collect();
    if !reasons.is_empty() {
        text.push_str("\nWhy generic mode, in the words of the log:\n\n");
        reasons.iter().for_each(|reason| text.push_str(&wrap(reason)));
    }
    let refusals: Vec<_> = kernels.iter().filter_map(refusal).collect();
    if !refusals.is_empty() {
        text.push_str("\nWhy it does not run, in the words of `run` and `doctor`:\n\n");
        refusals.iter().for_each(|refusal| text.push_str(&wrap(refusal)));
    }
    let faults: Vec<_> = kernels.iter().flat_map(faults).collect();
    if !faults.is_empty() {
        text.push_str("\nNot right:\n\n");
        faults.iter().for_each(|fault| text.push_str(&wrap(fault)));
    }
    text
}

/// The binary that the newest cell was tried with.
fn newest_binary(kernels: &[Value]) -> &str {
    let rows = kernels.iter().flat_map(|kernel| list(kernel, "interfaces"));
    rows.max_by_key(|row| row["time"].as_u64()).map_or("", |row| words(row, "binary"))
}

/// The days on which a kernel was tried, of which commits, and the command that does it again.
fn when(kernel: &Value, architecture: Architecture) -> String {
    let different = |key: &str| {
        let rows = list(kernel, "interfaces").map(|row| words(row, key));
        let mut all: Vec<_> = rows.filter(|one| !one.is_empty()).collect();
        all.sort_unstable();
        all.dedup();
        all.join(" and ")
    };
    let commits = different("commit");
    let of = if commits.is_empty() { String::new() } else { format!(" of commit {commits}") };
    let of_all = |mode: &str| {
        list(kernel, "interfaces").all(|row| list(row, "modes").any(|had| had == mode))
    };
    let modes: String = ["auto", "native", "generic"]
        .into_iter()
        .filter(|mode| of_all(mode))
        .map(|mode| format!(" --mode {mode}"))
        .collect();
    let modes = if modes.matches("--mode").count() == 3 { "" } else { &modes };
    let option = if architecture == Architecture::Amd64 { "" } else { " --arch arm64 --cloud" };
    format!(
        "{}{of}, `cargo xtask machines{option} --kernel {}{modes}`",
        different("date"),
        words(kernel, "kernel")
    )
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

fn cell(kernel: &Value, name: &str, newest: &str) -> String {
    let Some(row) = list(kernel, "interfaces").find(|row| words(row, "interface") == name) else {
        return String::new();
    };
    let failed = list(row, "checks").filter(|check| check["right"] != true).count();
    let way = match (words(row, "mode"), words(row, "egress")) {
        ("", _) if failed == 0 => "refused".to_owned(),
        ("", _) => "not filtered".to_owned(),
        (mode, egress) => format!("{mode}, {egress}"),
    };
    let star = if words(row, "binary") == newest { "" } else { " \\*" };
    if failed > 0 { format!("{way} ({failed} failed){star}") } else { way + star }
}

/// Why an interface is filtered in generic mode, in the newest kernel's words; on which kernels, if
/// others run it natively.
fn reason(kernels: &[Value], name: String) -> Option<String> {
    let rows = kernels.iter().filter_map(|kernel| {
        let row = list(kernel, "interfaces").find(|row| words(row, "interface") == name)?;
        (!words(row, "mode").is_empty()).then_some((version(kernel), row))
    });
    let rows: Vec<_> = rows.collect();
    let reasoned = || rows.iter().filter(|(_, row)| row["reason"].is_string());
    let (_, newest) = reasoned().next_back()?;
    let on = if rows.iter().any(|(_, row)| words(row, "mode") == "native") {
        let versions: Vec<_> = reasoned().map(|(version, _)| *version).collect();
        format!(" on {}", versions.join(" and "))
    } else {
        String::new()
    };
    Some(format!("- **{name}**{on}: {}", escaped(&shortened(words(newest, "reason")))))
}

/// Why a kernel runs the filter on no interface, if it refused.
fn refusal(kernel: &Value) -> Option<String> {
    let row = list(kernel, "interfaces").find(|row| words(row, "mode").is_empty())?;
    let reason = row["reason"].as_str()?;
    let said = reason.split_once("ERROR ").map_or(reason, |(_, said)| said);
    Some(format!("- **{}**: {}", version(kernel), escaped(said.trim())))
}

/// The driver's reason and the remedy, without what every line of the log says.
fn shortened(reason: &str) -> String {
    let Some((_, said)) = reason.split_once("the driver cannot run it (") else {
        return reason.to_owned();
    };
    let Some((said, rest)) = said.split_once("); attached in generic mode") else {
        return reason.to_owned();
    };
    match rest.split_once("; for native mode: ") {
        Some((_, remedy)) => format!("{said}; for native mode: {remedy}"),
        None => said.to_owned(),
    }
}

/// Text in which nothing is taken for HTML; what is between backticks is not, anyway.
fn escaped(text: &str) -> String {
    let parts = text.split('`').enumerate();
    let parts =
        parts.map(|(n, part)| if n % 2 == 0 { part.replace('<', "&lt;") } else { part.to_owned() });
    parts.collect::<Vec<_>>().join("`")
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
    use serde_json::json;

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
    fn a_reason_is_the_drivers_and_names_its_kernels() {
        let kernel = |release: &str, mode: &str, reason: Option<&str>| {
            let row = json!({"interface": "vmxnet3", "mode": mode, "reason": reason});
            json!({"release": release, "interfaces": [row]})
        };
        let log = "eth1: the driver cannot run it (not supported [x]); attached in generic mode, \
                   which costs; for native mode: `<host/>` or a <newer> kernel";
        let old = kernel("6.1.0-56", "generic", Some(log));
        let said = "not supported [x]; for native mode: `<host/>` or a &lt;newer> kernel";
        let of = |kernels: &[Value]| reason(kernels, "vmxnet3".to_owned()).unwrap_or_default();
        assert_eq!(of(std::slice::from_ref(&old)), format!("- **vmxnet3**: {said}"));
        let new = kernel("6.12.1", "native", None);
        assert_eq!(of(&[old, new.clone()]), format!("- **vmxnet3** on 6.1.0: {said}"));
        assert_eq!(of(&[new]), "");
        // A refusal is no reason for generic mode.
        let row = json!({"interface": "vmxnet3", "mode": null, "reason": "no helper", "right": true,
            "checks": []});
        let oldest = json!({"release": "5.15.0-1", "interfaces": [row]});
        assert_eq!(refusal(&oldest).as_deref(), Some("- **5.15.0**: no helper"));
        assert_eq!(cell(&oldest, "vmxnet3", ""), "refused");
        assert_eq!(of(&[oldest]), "");
    }

    #[test]
    fn a_page_has_cells_reasons_and_faults() {
        let kernel = json!({
            "kernel": "6.12", "release": "6.12.1+deb13-amd64", "platform": "Debian 13",
            "accelerator": "KVM",
            "interfaces": [
                {"interface": "igb", "mode": "native", "egress": "tcx",
                 "checks": [{"check": "run", "right": true}], "date": "2026-11-27", "time": 2,
                 "binary": "b", "commit": "c0ffee", "modes": ["auto"], "verifier_instructions": 7,
                 "load_seconds": 0.25, "ready_seconds": 1.25},
                {"interface": "VLAN", "mode": "generic", "egress": "tcx", "reason": "not supported",
                 "checks": [{"check": "unload", "right": false, "detail": "1 program more"}],
                 "date": "2026-11-26", "time": 1, "binary": "a", "modes": ["auto", "native"]},
            ],
        });
        let text = section(&[kernel], Architecture::Amd64);
        for line in [
            "| interface | 6.12.1 |",
            "| igb | native, tcx |",
            "| VLAN | generic, tcx (1 failed) \\* |",
            "| 6.12.1+deb13-amd64 | Debian 13 | 7 | 0.2 s | 1.2 s, KVM | 2026-11-26 and \
             2026-11-27 \
             of commit c0ffee, `cargo xtask machines --kernel 6.12 --mode auto` |",
            "- **VLAN**: not supported",
            "- 6.12.1, VLAN, unload: 1 program more",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
