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

/// Whether what `doctor` foretold is what `run` did.
pub(crate) fn agree(doctor: &Value, ready: bool, mode: Option<&str>) -> Result<String> {
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
        if ready {
            bail!("doctor fails ({}), and run works", words(failed));
        }
        return Ok(format!("both refuse: {}", words(failed)));
    }
    if !ready {
        bail!("doctor finds nothing wrong, and run fails");
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
            {"check": "kernel", "status": "ok", "detail": "Linux"},
            {"check": "driver", "status": status, "detail": "igb"},
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
        let agrees = |status, ready, mode| agree(&doctor(status), ready, mode).is_ok();
        assert!(agrees("ok", true, Some("native")));
        assert!(agrees("warn", true, Some("generic")));
        assert!(agrees("fail", false, None));
        assert!(!agrees("ok", true, Some("generic")));
        assert!(!agrees("warn", true, Some("native")));
        assert!(!agrees("ok", false, None));
        assert!(!agrees("fail", true, Some("native")));
    }
}
