//! What failed, said again at the end: a run of all tests prints more than anybody scrolls back through.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::command::{check, describe};

/// How many of a failed test's last lines are repeated.
const LINES: usize = 20;

/// The failed tests of a run, read from what the test runner prints.
#[derive(Debug, Default)]
struct Failures {
    is_inside: bool,
    /// In a backtrace, which says less than what stands above it.
    is_trace: bool,
    tests: Vec<Failure>,
}

#[derive(Debug)]
struct Failure {
    name: String,
    output: Vec<String>,
}

impl Failures {
    fn read(&mut self, line: &str) {
        let heading = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        if line.starts_with("test result: ") || line == "successes:" {
            self.is_inside = false;
        } else if line == "failures:" {
            // It comes twice: before what the tests printed, and before their names alone.
            self.is_inside = !self.is_inside;
        } else if let (true, Some(name)) = (self.is_inside, heading) {
            self.tests.push(Failure { name: name.to_owned(), output: Vec::new() });
            self.is_trace = false;
        } else if let (true, Some(failure)) = (self.is_inside, self.tests.last_mut()) {
            self.is_trace |= line.eq_ignore_ascii_case("stack backtrace:");
            if !self.is_trace && !line.is_empty() {
                failure.output.push(line.to_owned());
            }
        }
    }

    /// A paragraph for each test.
    fn say(&self) -> String {
        let said = self.tests.iter().map(|Failure { name, output }| {
            let skipped = output.len().saturating_sub(LINES);
            let gap = if skipped > 0 { format!("    ({skipped} lines before)\n") } else { String::new() };
            let lines: String = output[skipped..].iter().map(|line| format!("    {line}\n")).collect();
            format!("\nfailed: {name}\n{gap}{lines}")
        });
        said.collect()
    }
}

/// Runs the test runner with our own output. When tests fail, what they said comes again at the end.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let what = describe(command);
    let cannot = || format!("cannot run `{what}`");
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(cannot)?;
    let mut failures = Failures::default();
    let output = child.stdout.take().with_context(cannot)?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.with_context(cannot)?;
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&line).and_then(|()| stdout.write_all(b"\n")).with_context(cannot)?;
        failures.read(&String::from_utf8_lossy(&line));
    }
    let status = child.wait().with_context(cannot)?;
    if !status.success() {
        eprint!("{}", failures.say());
    }
    check(&what, status)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "
running 3 tests
test good ... ok
test module::bad ... FAILED
test worse ... FAILED

successes:

---- good stdout ----
printed by a good one

successes:
    good

failures:

---- module::bad stdout ----
printed before

Error: no answer

---- worse stdout ----
thread 'worse' panicked at tests/x.rs:1:1:
left: 1
stack backtrace:
   0: somewhere

failures:
    module::bad
    worse

test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

running 1 test
test other ... ok

successes:

---- other stdout ----
more

successes:
    other

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn what_failed_is_said_again_and_nothing_else() {
        let mut failures = Failures::default();
        RUN.lines().for_each(|line| failures.read(line));
        let expected = "
failed: module::bad
    printed before
    Error: no answer

failed: worse
    thread 'worse' panicked at tests/x.rs:1:1:
    left: 1
";
        assert_eq!(failures.say(), expected);
    }

    #[test]
    fn only_the_end_of_much_output_is_said_again() {
        let mut failures = Failures::default();
        ["failures:", "---- long stdout ----"].iter().for_each(|line| failures.read(line));
        (0..LINES + 5).for_each(|number| failures.read(&format!("line {number}")));
        let said = failures.say();
        assert!(said.starts_with("\nfailed: long\n    (5 lines before)\n    line 5\n"), "{said}");
        assert!(said.ends_with("line 24\n"), "{said}");
    }
}
