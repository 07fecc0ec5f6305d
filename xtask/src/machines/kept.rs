//! The last result of each interface on each kernel, kept beside what is built: so that they can be
//! tried one by one, and a run that ends early loses nothing.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::interfaces::ROWS;
use super::kernels::KERNELS;
use super::manual::{list, words};

/// The results that are kept, in the order of kernels; none if there are none yet.
pub(crate) fn all(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).ok();
    let old =
        text.and_then(|text| serde_json::from_str::<Value>(&text).ok()).unwrap_or(Value::Null);
    list(&old, "kernels").cloned().collect()
}

/// Adds new results to those that are kept, interface by interface, and returns all: kernels and
/// interfaces in their own order.
pub(crate) fn keep(file: &Path, new: &Value) -> Result<Vec<Value>> {
    let old = all(file);
    let mut results = Vec::new();
    for kernel in &KERNELS {
        let is_it = |result: &&Value| result["kernel"] == kernel.name;
        match (list(new, "kernels").find(is_it).cloned(), old.iter().find(is_it)) {
            (Some(new), Some(old)) => results.push(merged(new, old)),
            (new, old) => results.extend(new.or(old.cloned())),
        }
    }
    let text = serde_json::to_string_pretty(&json!({"schema": 2, "kernels": results}))?;
    if let Some(parent) = file.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(results)
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

#[cfg(test)]
mod tests {
    use super::super::manual::version;
    use super::*;

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
            is_settled(&super::all(&file), "6.12", release, row, stamp, &[mode.to_owned()])
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
            json!({
                "mode": mode, "binary": binary, "modes": modes, "checks": checks, "right": right,
            })
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
}
