//! A task that runs beside the others, in time that the processors have left.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// One that runs. Dropped, it is ended.
pub struct Beside {
    name: &'static str,
    child: Child,
    log: PathBuf,
    begun: Instant,
}

impl Beside {
    /// Starts it; where that can't be, it has its turn as any other.
    pub fn begin(name: &'static str, command: &[&str]) -> Option<Self> {
        let log = std::env::temp_dir().join(format!("vmtree-ci-{name}-{}.log", std::process::id()));
        let out = File::create(&log).ok()?;
        let errors = out.try_clone().ok()?;
        let child = Command::new("chrt")
            .args(["--idle", "0"])
            .args(command)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(errors)
            .spawn();
        println!("== {name}: begun, beside what follows");
        Some(Self { name, child: child.ok()?, log, begun: Instant::now() })
    }

    /// Waits for its end, tells what it said, and whether it passed; one that takes longer than this is skipped by name.
    pub fn ends(mut running: Self, left: Duration) -> bool {
        let (name, since) = (running.name, Instant::now());
        let status = loop {
            match running.child.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) if since.elapsed() < left => thread::sleep(Duration::from_millis(200)),
                _ => break None,
            }
        };
        print!("{}", fs::read_to_string(&running.log).unwrap_or_default());
        let took = running.begun.elapsed().as_secs_f64();
        let word = match status {
            Some(status) if status.success() => "passed",
            Some(_) => "FAILED",
            None => "SKIPPED: CI's half hour is over, not done",
        };
        println!("== {name}: {word} in {took:.0} s, beside the others");
        status.is_none_or(|status| status.success())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // A script ends what it has started when it is told to, and not where it is killed.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        }
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.log);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(name: &'static str, script: &str, left: Duration) -> Option<bool> {
        let running = Beside::begin(name, &["sh", "-c", script])?;
        let log = running.log.clone();
        let passed = Beside::ends(running, left);
        assert!(!log.exists());
        Some(passed)
    }

    #[test]
    fn it_passes_fails_or_is_too_late() {
        let long = Duration::from_secs(60);
        let passed = ends("passes", "echo said", long);
        // Without chrt each has its turn as any other.
        if passed.is_some() {
            assert_eq!((passed, ends("fails", "exit 3", long)), (Some(true), Some(false)));
            assert_eq!(ends("late", "exec sleep 60", Duration::ZERO), Some(true));
        }
    }
}
