//! The manual's page about platforms: its tables are what the machines showed, between two markers
//! per architecture. The last result of each kernel is kept beside what is built, so that kernels
//! can be tried one by one.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::interfaces::ROWS;
use super::kernels::KERNELS;
use super::qemu::Architecture;

/// The page, from the workspace's root.
pub(crate) const PAGE: &str = "docs/platforms.md";

/// The longest line of the page, where words can be broken.
const WIDTH: usize = 100;

/// The results that are kept, in the order of kernels; none if there are none yet.
pub(crate) fn kept(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).ok();
    let old =
        text.and_then(|text| serde_json::from_str::<Value>(&text).ok()).unwrap_or(Value::Null);
    list(&old, "kernels").cloned().collect()
}

/// Adds new results to those that are kept, interface by interface, and returns all: kernels and
/// interfaces in their own order.
pub(crate) fn keep(file: &Path, new: &Value) -> Result<Vec<Value>> {
    let old = kept(file);
    let mut all = Vec::new();
    for kernel in &KERNELS {
        let is_it = |result: &&Value| result["kernel"] == kernel.name;
        match (list(new, "kernels").find(is_it).cloned(), old.iter().find(is_it)) {
            (Some(new), Some(old)) => all.push(merged(new, old)),
            (new, old) => all.extend(new.or(old.cloned())),
        }
    }
    let text = serde_json::to_string_pretty(&json!({"schema": 2, "kernels": all}))?;
    if let Some(parent) = file.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(all)
}

/// A kernel's results with the old ones of other interfaces, unless these were another release's.
fn merged(mut new: Value, old: &Value) -> Value {
    if new["release"] != old["release"] {
        return new;
    }
    let find = |kernel: &Value, name: &str| {
        list(kernel, "interfaces").find(|row| words(row, "interface") == name).cloned()
    };
    let rows = ROWS.iter().filter_map(|row| match (find(&new, row.name), find(old, row.name)) {
        (Some(new), Some(old)) => Some(of_all_modes(new, old)),
        (new, old) => new.or(old),
    });
    let rows: Vec<_> = rows.collect();
    let mut warnings: Vec<_> =
        list(old, "kernel_warnings").chain(list(&new, "kernel_warnings")).cloned().collect();
    warnings.dedup();
    new["interfaces"] = rows.into();
    new["kernel_warnings"] = warnings.into();
    new
}

/// A row's result, with the older one of other modes if both are of the same binary. What `run`
/// chose by itself, and all that needs packets, is in the result of the mode `auto`.
fn of_all_modes(new: Value, mut old: Value) -> Value {
    let has_auto = |row: &Value| list(row, "modes").any(|mode| mode == "auto");
    let is_other = list(&new, "modes").all(|mode| list(&old, "modes").all(|had| had != mode));
    if new["binary"] != old["binary"] || has_auto(&new) || !has_auto(&old) || !is_other {
        return new;
    }
    for key in ["modes", "checks"] {
        let both: Vec<_> = list(&old, key).chain(list(&new, key)).cloned().collect();
        old[key] = both.into();
    }
    old["right"] = (old["right"] == true && new["right"] == true).into();
    old
}

/// Whether a row need not be tried again: it was, in these modes, with this kernel and binary, and
/// was right.
pub(crate) fn is_settled(
    kept: &[Value],
    kernel: &str,
    release: &str,
    row: &str,
    stamp: &str,
    modes: &[String],
) -> bool {
    let kernel =
        kept.iter().find(|result| result["kernel"] == kernel && result["release"] == release);
    let row = kernel
        .and_then(|kernel| list(kernel, "interfaces").find(|kept| words(kept, "interface") == row));
    row.is_some_and(|row| {
        let had: Vec<_> = list(row, "modes").filter_map(Value::as_str).collect();
        row["right"] == true
            && row["binary"] == stamp
            && modes.iter().all(|mode| had.contains(&mode.as_str()))
    })
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

/// The days on which a kernel was tried, and the command that does it again.
fn when(kernel: &Value, architecture: Architecture) -> String {
    let mut dates: Vec<_> = list(kernel, "interfaces")
        .map(|row| words(row, "date"))
        .filter(|date| !date.is_empty())
        .collect();
    dates.sort_unstable();
    dates.dedup();
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
        "{}, `cargo xtask machines{option} --kernel {}{modes}`",
        dates.join(" and "),
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
        ("", _) => "not filtered".to_owned(),
        (mode, egress) => format!("{mode}, {egress}"),
    };
    let star = if words(row, "binary") == newest { "" } else { " \\*" };
    if failed > 0 { format!("{way} ({failed} failed){star}") } else { way + star }
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
    fn the_last_result_of_each_interface_is_kept() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("kept.json");
        let result = |kernel: &str, release: &str, row: &str, date: &str| {
            let row = json!({
                "interface": row, "date": date, "binary": "b", "right": true, "modes": ["auto"],
            });
            json!({"kernels": [{"kernel": kernel, "release": release, "interfaces": [row]}]})
        };
        keep(&file, &result("6.12", "6.12.1", "igb", "1"))?;
        keep(&file, &result("6.1", "6.1.1", "igb", "2"))?;
        keep(&file, &result("6.12", "6.12.1", "virtio_net", "3"))?;
        let all = keep(&file, &result("6.12", "6.12.1", "igb", "4"))?;
        let rows = |all: &[Value]| -> Vec<String> {
            let rows = all
                .iter()
                .flat_map(|kernel| list(kernel, "interfaces").map(move |row| (kernel, row)));
            rows.map(|(kernel, row)| {
                format!("{} {} {}", version(kernel), words(row, "interface"), words(row, "date"))
            })
            .collect()
        };
        assert_eq!(rows(&all), ["6.1.1 igb 2", "6.12.1 virtio_net 3", "6.12.1 igb 4"]);
        let settled = |release: &str, row: &str, stamp: &str, mode: &str| {
            is_settled(&kept(&file), "6.12", release, row, stamp, &[mode.to_owned()])
        };
        assert!(settled("6.12.1", "igb", "b", "auto"));
        assert!(
            !settled("6.12.1", "igb", "other", "auto") && !settled("6.12.1", "igb", "b", "native")
        );
        assert!(
            !settled("6.12.2", "igb", "b", "auto") && !settled("6.12.1", "e1000e", "b", "auto")
        );
        // Another release of the same kernel has everything before it.
        let all = keep(&file, &result("6.12", "6.12.2", "igb", "5"))?;
        assert_eq!(rows(&all), ["6.1.1 igb 2", "6.12.2 igb 5"]);
        Ok(())
    }

    #[test]
    fn modes_that_were_tried_one_by_one_are_one_result() {
        let row = |binary: &str, modes: &[&str], right: bool| {
            let checks = [json!({"check": modes[0], "right": right})];
            let mode = (modes[0] == "auto").then_some("native");
            json!({"mode": mode, "binary": binary, "modes": modes, "checks": checks, "right": right})
        };
        let auto = row("b", &["auto"], true);
        let both = of_all_modes(row("b", &["native", "generic"], false), auto.clone());
        assert_eq!((words(&both, "mode"), &both["right"]), ("native", &false.into()));
        assert_eq!(both["modes"], json!(["auto", "native", "generic"]));
        assert_eq!(list(&both, "checks").count(), 2);
        // Of another binary, or the same once more: the new one counts alone.
        let other = row("c", &["native"], true);
        assert_eq!(of_all_modes(other.clone(), auto.clone()), other);
        assert_eq!(of_all_modes(auto.clone(), both), auto);
    }

    #[test]
    fn a_page_has_cells_reasons_and_faults() {
        let kernel = json!({
            "kernel": "6.12", "release": "6.12.1+deb13-amd64", "platform": "Debian 13",
            "accelerator": "KVM",
            "interfaces": [
                {"interface": "igb", "mode": "native", "egress": "tcx",
                 "checks": [{"check": "run", "right": true}], "date": "2026-11-27", "time": 2,
                 "binary": "b", "modes": ["auto"], "verifier_instructions": 7,
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
             2026-11-27, \
             `cargo xtask machines --kernel 6.12 --mode auto` |",
            "- **VLAN**: not supported",
            "- 6.12.1, VLAN, unload: 1 program more",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
