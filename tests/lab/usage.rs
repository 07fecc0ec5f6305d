//! Resource usage of a process.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// Resident memory, in MiB.
pub fn memory(pid: Pid) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("there is no process {pid}"))?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    let kilobytes: f64 =
        line.with_context(|| format!("process {pid} has no memory"))?.trim().parse()?;
    Ok(kilobytes / 1024.0)
}

/// CPU time of its threads so far.
pub fn cpu_time(pid: Pid) -> Result<Duration> {
    let clock = clock_getcpuclockid(pid).with_context(|| format!("there is no process {pid}"))?;
    Ok(clock_gettime(clock)?.into())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn this_process_uses_some_of_both() {
        let own = Pid::this();
        let before = cpu_time(own).unwrap();
        let start = Instant::now();
        let filled = vec![1_u8; 16 << 20];
        while start.elapsed() < Duration::from_millis(50) {}
        assert!(cpu_time(own).unwrap() > before);
        assert!((16.0..16_384.0).contains(&memory(own).unwrap()), "{}", filled.len());
        // Above the kernel's maximum (`PID_MAX_LIMIT`).
        let nobody = Pid::from_raw(1 << 23);
        assert!(memory(nobody).is_err() && cpu_time(nobody).is_err());
    }
}
