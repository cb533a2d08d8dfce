//! How vmtree is built, checked by reading its source: who may name whom (docs/architecture.md), where `unsafe` is, how
//! long a file is. A plain scan of text: comments and unit tests don't count.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

/// Files over the soft limit of lines, each known.
const LONG: &[&str] = &[];
const LINES: usize = 400;

/// What names an operating system or the kernel's FUSE.
const SYSTEM: &[&str] = &["libc::", "fuser::", "rustix::", "nix::", "signal_hook::", "std::os::"];
/// Where that belongs: the adapters, and what in a driver talks to the system.
const SYSTEM_HERE: &[&str] = &[
    "src/fuse/",
    "src/daemon/",
    "src/guardian/",
    "drivers/emu/src/sys",
    "drivers/kvmi/src/sys",
    "drivers/xen/src/sys",
];
/// Drivers that are of one system by nature: they look into another process, or are loaded into one.
const SYSTEM_DRIVERS: &[&str] = &["drivers/qemu/src/", "drivers/qemu-plugin/src/"];
/// Known exceptions, each for one thing.
const SYSTEM_EXCEPTIONS: &[(&str, &str)] = &[
    ("src/cli/demo.rs", "std::os::unix::fs::DirBuilderExt"),
    ("src/cli/tour.rs", "std::os::unix::process::ExitStatusExt"),
    // The socket between a driver and an agent, one for both ends.
    ("drivers/agent/src/socket.rs", "std::os::unix::net::UnixStream"),
    ("drivers/agent/src/socket.rs", "rustix::net::"),
];

struct Source {
    path: String,
    /// All of it.
    text: String,
    /// Without comments and without unit tests.
    code: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file of ours below `folder`, by its path from the root on.
fn sources(folder: &str, extensions: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                if name != "target" {
                    folders.push(path);
                }
            } else if extensions.iter().any(|extension| path.extension().is_some_and(|is| is == *extension)) {
                found.push(source(&path));
            }
        }
    }
    assert!(!found.is_empty(), "nothing below {folder}");
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn source(path: &PathBuf) -> Source {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    let unit_tests = path.ends_with("_tests.rs") || path.contains("/tests/");
    let main = if unit_tests { "" } else { text.split("#[cfg(test)]\nmod tests {").next().unwrap() };
    let code = main.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n");
    Source { path, text, code }
}

/// The code of the crates that are built into the program.
fn program() -> Vec<Source> {
    let mut all = sources("src", &["rs"]);
    for driver in fs::read_dir(root().join("drivers")).unwrap() {
        let name = driver.unwrap().file_name().into_string().unwrap();
        all.extend(sources(&format!("drivers/{name}/src"), &["rs"]));
    }
    all
}

/// The lines of a file's code that have one of these words.
fn naming<'a>(source: &'a Source, words: &'a [&str]) -> impl Iterator<Item = String> + 'a {
    let has = move |line: &&str| words.iter().any(|word| has_path(line, word));
    source.code.lines().filter(has).map(|line| format!("{}: {}", source.path, line.trim()))
}

/// Whether a line has `word` not as the end of a longer name.
fn has_path(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

/// Whether this line of a file is a known exception.
fn excepted(source: &Source, line: &str) -> bool {
    SYSTEM_EXCEPTIONS.iter().any(|(path, what)| source.path == *path && line.contains(what))
}

fn none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

#[test]
fn the_scan_sees_what_it_looks_for() {
    let adapter = source(&root().join("src/fuse/adapter.rs"));
    assert!(naming(&adapter, SYSTEM).count() > 0);
    assert!(has_path("use libc::c_int;", "libc::") && !has_path("use mylibc::x;", "libc::"));
    assert!(sources("drivers/emu/src", &["rs"]).iter().any(|source| source.code.contains("unsafe {")));
    let with_tests = source(&root().join("src/error.rs"));
    assert!(with_tests.text.contains("mod tests") && !with_tests.code.contains("mod tests"));
}

#[test]
fn the_system_is_named_only_by_adapters() {
    let mut found = Vec::new();
    for source in program() {
        if SYSTEM_HERE.iter().chain(SYSTEM_DRIVERS).any(|here| source.path.starts_with(here)) {
            continue;
        }
        found.extend(naming(&source, SYSTEM).filter(|line| !excepted(&source, line)));
    }
    none("the operating system is named outside its adapters", found);
    // Only the adapter names fuser, wherever else the system may be named.
    let fuser = program().into_iter().filter(|source| !source.path.starts_with("src/fuse/"));
    none("fuser", fuser.flat_map(|source| naming(&source, &["fuser::"]).collect::<Vec<_>>()).collect());
}

#[test]
fn nothing_points_back_up() {
    let program =
        ["crate::cli", "crate::mount", "crate::daemon", "crate::guardian", "vmtree_emu::", "vmtree_qemu::"];
    let up = [
        ("src/text/", &["crate::memory", "crate::tree", "crate::fuse"][..], &program[..]),
        ("src/memory/", &["crate::tree", "crate::fuse"], &program),
        ("src/events/", &["crate::tree", "crate::fuse", "crate::memory", "crate::jobs"], &program),
        ("src/tree/", &["crate::fuse", "crate::jobs"], &program),
        ("src/fuse/", &["crate::drivers"], &program),
        // The guardian is a process of its own; it opens drivers to undo, and takes the daemon's helpers.
        ("src/guardian/", &["crate::tree", "crate::fuse"], &["crate::cli", "crate::mount:"]),
    ];
    let mut found = Vec::new();
    for source in sources("src", &["rs"]) {
        for (below, words, more) in up {
            if source.path.starts_with(below) {
                found.extend(naming(&source, words));
                found.extend(naming(&source, more));
            }
        }
    }
    none("a lower layer names a higher one", found);
}

#[test]
fn the_table_of_drivers_is_the_only_place_that_names_them() {
    let others = sources("src", &["rs"]).into_iter().filter(|source| source.path != "src/drivers.rs");
    let found = others.flat_map(|source| {
        naming(&source, &["vmtree_emu", "vmtree_kvmi", "vmtree_qemu", "vmtree_xen"]).collect::<Vec<_>>()
    });
    none("a driver is named outside src/drivers.rs", found.collect());
}

/// The crates that a manifest's `[dependencies]` name.
fn dependencies(manifest: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(manifest)).unwrap();
    let table = text.split_once("[dependencies]").map_or("", |(_, rest)| rest);
    let table = table.split("\n[").next().unwrap();
    let lines = table.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split(['.', '=', ' ']).next().unwrap().to_owned()).collect()
}

#[test]
fn crates_depend_on_what_they_may() {
    assert_eq!(dependencies("drivers/api/Cargo.toml"), [""; 0]);
    assert_eq!(dependencies("drivers/agent/Cargo.toml"), ["rustix"]);
    // It runs inside QEMU, parts of which are GPL-2.0-only: nothing of ours that asks for version 3 may come with it.
    assert_eq!(dependencies("drivers/qemu-plugin/Cargo.toml"), ["vmtree-agent", "iced-x86", "libc"]);
    assert!(dependencies("Cargo.toml").contains(&"fuser".to_owned()));
    for driver in fs::read_dir(root().join("drivers")).unwrap() {
        let name = driver.unwrap().file_name().into_string().unwrap();
        let named = dependencies(&format!("drivers/{name}/Cargo.toml"));
        for other in &named {
            let other_driver = other.starts_with("vmtree-")
                && !["vmtree-agent", "vmtree-api", "vmtree-guest"].contains(&other.as_str());
            assert!(
                other != "vmtree" && other != "fuser" && !other_driver,
                "drivers/{name} depends on {other}"
            );
        }
    }
}

#[test]
fn the_core_needs_the_standard_library_and_little_more() {
    let allowed = ["std", "core", "crate", "super", "self", "vmtree_api", "parking_lot", "log", "lru"];
    let mut found = Vec::new();
    for folder in ["src/tree", "src/memory", "src/events", "src/text", "drivers/agent/src", "drivers/api/src"]
    {
        for source in sources(folder, &["rs"]) {
            for line in source.code.lines() {
                let line = line.trim_start().trim_start_matches("pub ");
                let Some(path) = line.strip_prefix("use ") else { continue };
                let first = path.split([':', ';', ' ']).next().unwrap();
                // A module of its own, beside or below it.
                let beside = root().join(&source.path).with_file_name(first);
                let own = beside.is_dir() || beside.with_extension("rs").is_file();
                if !allowed.contains(&first) && !own && !excepted(&source, line) {
                    found.push(format!("{}: {line}", source.path));
                }
            }
        }
    }
    none("a crate that the core does not know", found);
}

#[test]
fn unsafe_is_in_sys_modules_only() {
    let mut found = Vec::new();
    for source in program() {
        let sys = source.path.starts_with("drivers/")
            && (source.path.ends_with("/sys.rs") || source.path.contains("/sys/"));
        if !sys {
            found.extend(naming(&source, &["unsafe ", "unsafe{", "unsafe_code"]));
        }
    }
    none("unsafe outside a driver's sys module", found);
}

#[test]
fn nothing_is_left_to_do() {
    let mut found = Vec::new();
    for source in program() {
        found.extend(naming(&source, &["todo!", "unimplemented!", "unreachable!", "dbg!"]));
        let marks = ["TODO", "FIXME", "XXX"];
        let lines = source.text.lines().filter(|line| marks.iter().any(|mark| line.contains(mark)));
        found.extend(lines.map(|line| format!("{}: {}", source.path, line.trim())));
    }
    none("unfinished", found);
}

#[test]
fn rooms_are_small() {
    let mut long = Vec::new();
    for folder in ["src", "drivers", "tests"] {
        for source in sources(folder, &["rs", "sh", "py"]) {
            if source.text.lines().count() > LINES {
                long.push(source.path);
            }
        }
    }
    for path in &long {
        assert!(LONG.contains(&path.as_str()), "{path} has more than {LINES} lines");
    }
    for path in LONG {
        assert!(long.iter().any(|is| is == path), "{path} is short now: take it off the list");
    }
}
