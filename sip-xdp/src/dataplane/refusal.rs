//! Program refusals on one line: the reason, which is the last line of the verifier's log, and the
//! file with the whole log.

use std::error::Error;
use std::fmt;
use std::fs;
use std::path::Path;

use aya::programs::ProgramError;

/// File in the state directory with the verifier log of the last refusal.
pub const LOG_FILE: &str = "verifier.log";

/// Prefixes of verifier lines after the reason: figures, source lines, and backtracking
/// (`print_verification_stats`, `mark_chain_precision` and others in `kernel/bpf/verifier.c`).
const NO_REASON: [&str; 13] = [
    "processed ",
    "verification time ",
    "stack depth ",
    "max_states_per_insn ",
    "total_states ",
    "peak_states ",
    "regs=",
    "parent ",
    "last_idx ",
    "mark_precise",
    "from ",
    "func#",
    ";",
];

/// A program that the kernel refused.
#[derive(Debug)]
pub struct Refusal {
    /// The program's name.
    program: &'static str,
    /// The system's error.
    error: String,
    /// The verifier's log, possibly empty.
    log: String,
    /// A missing kernel feature, if the log is empty.
    missing: Option<String>,
    /// Path of the log, or why it was not written.
    kept: Option<String>,
}

impl Refusal {
    /// The refusal of `program`. `missing` is called only if the log is empty.
    pub(crate) fn new(
        program: &'static str,
        error: &ProgramError,
        missing: impl FnOnce() -> Option<String>,
    ) -> Self {
        let (error, log) = match error {
            ProgramError::LoadError { io_error, verifier_log } => {
                (io_error.to_string(), verifier_log.to_string())
            }
            other => (super::attach::xdp::innermost(other), String::new()),
        };
        let missing = if reason(&log).is_none() { missing() } else { None };
        Self { program, error, log, missing, kept: None }
    }

    /// The verifier's log, unchanged.
    pub fn log(&self) -> &str {
        &self.log
    }

    /// Writes the log into a directory, and remembers the path.
    pub fn keep_log(&mut self, directory: &Path) {
        if self.log.trim().is_empty() {
            return;
        }
        let file = directory.join(LOG_FILE);
        let written = fs::create_dir_all(directory).and_then(|()| fs::write(&file, &self.log));
        self.kept = Some(match written {
            Ok(()) => format!("the verifier's whole log is in {}", file.display()),
            Err(error) => {
                format!("the verifier's log could not be written to {}: {error}", file.display())
            }
        });
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, error, log, missing, kept } = self;
        write!(f, "the kernel did not take the program {program} ({error})")?;
        match (reason(log), missing) {
            (Some(reason), _) => write!(f, ": {reason}")?,
            (None, Some(missing)) => write!(f, ": {missing}")?,
            (None, None) => f.write_str(", and its verifier gave no reason")?,
        }
        if error.contains("Operation not permitted") {
            f.write_str(
                "; BPF is refused here (a container, lockdown, or missing capabilities): run it on \
                 the host as root",
            )?;
        }
        match kept {
            Some(kept) => write!(f, "; {kept}"),
            None => Ok(()),
        }
    }
}

impl Error for Refusal {}

/// Writes the verifier's log into a directory, if this error has one, and adds the path to the
/// error.
pub fn keep_log(error: anyhow::Error, directory: &Path) -> anyhow::Error {
    match error.downcast::<Refusal>() {
        Ok(mut refusal) => {
            refusal.keep_log(directory);
            refusal.into()
        }
        Err(error) => error,
    }
}

/// The reason in a verifier's log: the last line that is none of [`NO_REASON`], and no instruction,
/// register state or truncated line.
fn reason(log: &str) -> Option<&str> {
    let is_reason = |line: &&str| {
        let numbered =
            line.split_once(':').is_some_and(|(number, _)| number.parse::<u32>().is_ok());
        !line.is_empty() && !numbered && !NO_REASON.iter().any(|start| line.starts_with(start))
    };
    log.lines().map(str::trim).rfind(is_reason)
}

#[cfg(test)]
mod tests {
    use std::io;

    use aya_obj::VerifierLog;

    use super::*;

    /// The end of Linux 6.1's log for a helper's size that may be 0.
    const LOG: &str = "func#0 @0\n0: R1=ctx(off=0,imm=0) R10=fp0\n; let left = TAP.get_ptr_mut(0)\n\
        4510: (85) call bpf_xdp_load_bytes#189\n\
        R4 invalid zero-sized read: u64=[0,1472]\n\
        processed 51234 insns (limit 1000000) max_states_per_insn 4 total_states 900 peak_states \
                       700 mark_read 30\n\n";

    fn refused(log: &str, code: i32, missing: Option<&str>) -> Refusal {
        let io_error = io::Error::from_raw_os_error(code);
        let error = ProgramError::LoadError { io_error, verifier_log: log_of(log) };
        Refusal::new("sip_xdp_ingress", &error, || missing.map(str::to_owned))
    }

    #[test]
    fn the_operator_sees_the_reason_and_where_the_log_is() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let error = keep_log(refused(LOG, libc::EACCES, Some("not asked")).into(), &state);
        let file = state.join("verifier.log");
        assert_eq!(
            error.to_string(),
            format!(
                "the kernel did not take the program sip_xdp_ingress (Permission denied (os error \
                 13)): R4 invalid \
                 zero-sized read: u64=[0,1472]; the verifier's whole log is in {}",
                file.display()
            )
        );
        assert_eq!(fs::read_to_string(file).unwrap(), LOG);
    }

    #[test]
    fn a_log_that_cannot_be_written_is_reported() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let text = keep_log(refused(LOG, libc::EACCES, None).into(), &file).to_string();
        assert!(
            text.contains("R4 invalid zero-sized read") && text.contains("could not be written"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn without_a_log_it_says_what_is_missing() {
        let text = refused("", libc::EINVAL, Some("the kernel has no helper bpf_loop")).to_string();
        let expected = "the kernel did not take the program sip_xdp_ingress (Invalid argument (os \
                        error 22)): the kernel has \
                        no helper bpf_loop";
        assert_eq!(text, expected);
        let text = refused("", libc::EINVAL, None).to_string();
        assert!(
            text.ends_with("(Invalid argument (os error 22)), and its verifier gave no reason"),
            "{text}"
        );
        let text = refused("", libc::EPERM, None).to_string();
        assert!(text.contains("a container, lockdown, or missing capabilities"), "{text}");
    }

    #[test]
    fn reasons_of_many_kernels() {
        for (log, expected) in [
            (LOG, Some("R4 invalid zero-sized read: u64=[0,1472]")),
            ("unknown func bpf_loop#181\nprocessed 90 insns", Some("unknown func bpf_loop#181")),
            (
                "last insn is not an exit or jmp\nverification time 96 usec\nstack depth \
                 0+0\nprocessed 0 insns\n",
                Some("last insn is not an exit or jmp"),
            ),
            (
                "17: (0f) r1 += r2\nmath between pkt pointer and register with unbounded min value \
                 is not allowed\n",
                Some(
                    "math between pkt pointer and register with unbounded min value is not allowed",
                ),
            ),
            (
                "BPF program is too large. Processed 1000001 insn\nprocessed 1000001 insns (limit \
                 1000000)\n",
                Some("BPF program is too large. Processed 1000001 insn"),
            ),
            ("regs=18 stack=0 before 3029: (07) r4 += 1\n3028: (73) *(u8 *)(r5 +0) = r2\n", None),
            ("", None),
        ] {
            assert_eq!(reason(log), expected, "{log}");
        }
    }

    /// The library builds logs only from kernel output.
    fn log_of(text: &str) -> VerifierLog {
        VerifierLog::new(text.to_owned())
    }
}
