//! `vmtree-conformance MOUNTPOINT [--only NAME]... [--patience SECONDS] [--list]`.

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmtree_conformance::{PATIENCE, Vm, checks, run};

const USAGE: &str = "usage: vmtree-conformance MOUNTPOINT [--only NAME]... [--patience SECONDS] [--list]
MOUNTPOINT is a VM mounted by vmtree that runs the guest of tests/guest. --patience is how long each wait may take (20), for hosts
that are emulated themselves. --list prints the checks.";

/// How long a check may take, in waits.
const LONGEST: u32 = 9;

/// What was asked for.
#[derive(Default)]
struct Asked {
    mountpoint: Option<String>,
    only: Vec<String>,
    patience: Option<Duration>,
    list: bool,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Asked, String> {
    let mut asked = Asked::default();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--list" => asked.list = true,
            "--only" => asked.only.push(words.next().ok_or("--only takes the name of a check; see --list")?),
            "--patience" => {
                let seconds = words.next().and_then(|word| word.parse().ok()).filter(|seconds| *seconds > 0);
                let seconds = seconds.ok_or("--patience takes a number of seconds, at least 1")?;
                asked.patience = Some(Duration::from_secs(seconds));
            }
            option if option.starts_with('-') => return Err(format!("there is no option {option}")),
            _ if asked.mountpoint.is_some() => return Err(format!("{word}: one mountpoint at a time")),
            _ => asked.mountpoint = Some(word),
        }
    }
    match asked.only.iter().find(|name| checks().all(|check| check.name != **name)) {
        Some(name) => Err(format!("there is no check '{name}'; see --list")),
        None => Ok(asked),
    }
}

/// When the last line was told, and which.
type Told = Arc<Mutex<(Instant, String)>>;

/// Ends the program where a call of the mount never comes back: no wait of a check itself is that long.
fn watchdog(longest: Duration) -> Told {
    let told: Told = Arc::new(Mutex::new((Instant::now(), "the start".to_owned())));
    let seen = told.clone();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let Ok(told) = seen.lock() else { return };
            if told.0.elapsed() > longest {
                println!(
                    "FAILED: the check after '{}' did not end in {longest:?}; the suite ends here",
                    told.1
                );
                std::process::exit(1);
            }
        }
    });
    told
}

fn main() -> ExitCode {
    let asked = match parse(std::env::args().skip(1)) {
        Ok(asked) => asked,
        Err(why) => {
            eprintln!("{why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if asked.list {
        checks().for_each(|check| println!("{:<34} {}", check.name, check.about));
        return ExitCode::SUCCESS;
    }
    let Some(mountpoint) = asked.mountpoint else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let patience = asked.patience.unwrap_or(PATIENCE);
    let vm = match Vm::open(mountpoint.as_ref()).and_then(|vm| vm.patient(patience).booted()) {
        Ok(vm) => vm,
        Err(why) => {
            eprintln!("{mountpoint}: {why}");
            return ExitCode::FAILURE;
        }
    };
    let told = watchdog(patience.saturating_mul(LONGEST));
    let summary = run(&vm, &asked.only, &mut |line| {
        println!("{line}");
        if let Ok(mut told) = told.lock() {
            *told = (Instant::now(), line.to_owned());
        }
    });
    println!("{summary}");
    if summary.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
