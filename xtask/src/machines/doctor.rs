//! What `doctor` foretells, held against what `run` did.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// What doctor says of drivers on kernels before 6.3, which cannot be asked what a driver can do.
const UNKNOWN: &str = "does not say what its drivers can do";

/// How long doctor's load of both programs took, in seconds.
pub(crate) fn load_seconds(doctor: &Value) -> Option<f64> {
    let took = |program: &str| doctor["programs"][program]["load_ms"].as_f64();
    Some((took("ingress")? + took("egress")?) / 1000.0)
}

/// How `doctor` says that responses are read.
const EGRESS: [(&str, &str); 2] = [
    ("responses are read through tcx", "tcx"),
    ("responses are read by a filter on the clsact qdisc (the kernel has no tcx)", "clsact"),
];

/// Whether what `doctor` foretold is what `run` did: mode and what reads responses, or the words of
/// its refusal.
pub(crate) fn agree(
    doctor: &Value,
    refused: Option<&str>,
    mode: Option<&str>,
    egress: Option<&str>,
) -> Result<String> {
    let checks = doctor["checks"].as_array().context("doctor lists no checks")?;
    let about = |status: &str, name: Option<&str>| {
        checks.iter().find(|check| {
            check["status"] == status && name.is_none_or(|name| check["check"] == name)
        })
    };
    let words = |check: &Value| {
        format!(
            "{}: {}",
            check["check"].as_str().unwrap_or_default(),
            check["detail"].as_str().unwrap_or_default()
        )
    };
    if let Some(failed) = about("fail", None) {
        let Some(refused) = refused else {
            bail!("doctor fails ({}), and run works", words(failed));
        };
        for part in ["detail", "remedy"] {
            let text = failed[part].as_str().unwrap_or_default();
            if !refused.contains(text) {
                bail!("doctor's {part} is not what run says: {text}");
            }
        }
        return Ok(format!("both refuse: {}", words(failed)));
    }
    if refused.is_some() {
        bail!("doctor finds nothing wrong, and run fails");
    }
    let responses = about("ok", Some("egress")).map(words).unwrap_or_default();
    let said = EGRESS.iter().find(|(said, _)| responses.ends_with(said));
    if said.is_none() || said.map(|(_, egress)| *egress) != egress {
        bail!("doctor says of responses: {responses:?}; run reads them by {egress:?}");
    }
    let driver =
        checks.iter().find(|check| check["check"] == "driver").map(words).unwrap_or_default();
    if driver.contains(UNKNOWN) {
        return Ok(format!("doctor foretells no mode: {driver}"));
    }
    let foretold = if about("ok", Some("driver")).is_some() { "native" } else { "generic" };
    if mode != Some(foretold) {
        bail!(
            "doctor foretells {foretold} mode ({driver}), run is in {} mode",
            mode.unwrap_or("no")
        );
    }
    Ok(format!("both say {foretold}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn doctor(status: &str) -> Value {
        json!({"checks": [
            {"check": "kernel", "status": "warn", "detail": "no x"},
            {"check": "egress", "status": "ok", "detail": "responses are read through tcx"},
            {"check": "driver", "status": status, "detail": "igb", "remedy": "another"},
        ]})
    }

    #[test]
    fn the_time_to_load_is_that_of_both_programs() {
        let doctor = json!({"programs": {"ingress": {"load_ms": 400}, "egress": {"load_ms": 100}}});
        assert_eq!(load_seconds(&doctor), Some(0.5));
        assert_eq!(load_seconds(&json!({"programs": null})), None);
    }

    #[test]
    fn doctor_and_run_must_say_the_same() {
        let agrees = |status, mode| agree(&doctor(status), None, mode, Some("tcx")).is_ok();
        assert!(agrees("ok", Some("native")));
        assert!(agrees("warn", Some("generic")));
        assert!(!agrees("ok", Some("generic")));
        assert!(!agrees("warn", Some("native")));
        assert!(!agrees("fail", Some("native")));
        let refuses = |status, words| agree(&doctor(status), Some(words), None, None).is_ok();
        assert!(refuses("fail", "igb; another"));
        assert!(!refuses("fail", "igb"), "without the remedy");
        assert!(!refuses("ok", "igb; another"));
        // What reads responses, too.
        for egress in [Some("clsact"), None] {
            assert!(agree(&doctor("ok"), None, Some("native"), egress).is_err());
        }
    }
}
