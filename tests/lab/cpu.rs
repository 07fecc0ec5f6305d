//! CPU affinity and scheduling priority.

use anyhow::{Context, Result};
use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The kernel's id for the calling thread.
const THIS_THREAD: Pid = Pid::from_raw(0);

/// The CPU of senders: the last allowed one.
pub fn sending_cpu() -> Result<usize> {
    allowed()?.last().copied().context("there is no CPU")
}

/// The CPU of a flooded server: the first allowed one.
pub fn serving_cpu() -> Result<usize> {
    allowed()?.first().copied().context("there is no CPU")
}

/// Pins the calling thread to one CPU.
pub fn stay_on(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(THIS_THREAD, &set))
        .with_context(|| format!("cannot use CPU {cpu}"))
}

fn allowed() -> Result<Vec<usize>> {
    let set = sched_getaffinity(THIS_THREAD).context("cannot tell which CPUs may be used")?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

/// Scheduling priority of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precedence {
    /// By far the largest share among ordinary threads.
    OverOrdinaryWork,
    /// Others run when it sleeps, as with softirq work of a network card. The kernel reserves a
    /// twentieth of the time for them in any case.
    OverEverything,
    /// Ordinary.
    Ordinary,
}

impl Precedence {
    /// Sets it for the calling thread. Without permission this does nothing.
    pub fn take(self) {
        match self {
            Self::OverOrdinaryWork => {
                // SAFETY: changes how the calling thread is scheduled and touches no memory.
                let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
            }
            Self::OverEverything => schedule(libc::SCHED_FIFO, 1),
            Self::Ordinary => schedule(libc::SCHED_OTHER, 0),
        }
    }
}

/// Sets the scheduling policy of the calling thread, if permitted.
fn schedule(policy: i32, priority: i32) {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the kernel reads the parameters, which outlive the call, and changes how the calling
    // thread is scheduled.
    let _ = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_stays_where_it_is_told_to() {
        let all = allowed().unwrap();
        let last = sending_cpu().unwrap();
        std::thread::spawn(move || {
            stay_on(last).unwrap();
            assert_eq!(allowed().unwrap(), [last]);
        })
        .join()
        .unwrap();
        assert_eq!(allowed().unwrap(), all);
        assert_eq!(serving_cpu().unwrap(), all[0]);
    }
}
