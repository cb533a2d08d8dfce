//! Every command in docs/tree.md and docs/events.md is run, as written, on a real mount.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::path::Path;

use common::live::{Live, has};

/// The blocks of indented lines: commands, but for those that show what a file prints.
fn commands(docs: &str) -> Vec<String> {
    let mut blocks: Vec<String> = vec![String::new()];
    for line in docs.lines() {
        match line.strip_prefix("    ") {
            Some(command) if !command.starts_with("t=1") && !command.starts_with("seq=7 ") => {
                let block = blocks.last_mut().unwrap();
                block.push_str(command);
                block.push('\n');
            }
            _ => blocks.push(String::new()),
        }
    }
    blocks.retain(|block| !block.is_empty());
    blocks
}

/// The targets of a page's links that are files of ours.
fn links(page: &str) -> Vec<&str> {
    let targets = page.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
    targets.filter(|target| !target.is_empty() && !target.contains("://")).collect()
}

#[test]
fn every_link_of_the_pages_leads_to_a_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["docs", "docs/examples"].map(|folder| fs::read_dir(root.join(folder)).unwrap());
    let docs = folders.into_iter().flatten().map(|entry| entry.unwrap().path());
    let pages: Vec<_> = docs.filter(|path| path.extension().is_some_and(|is| is == "md")).collect();
    let pages = pages.into_iter().chain([root.join("README.md")]);
    let mut dead = Vec::new();
    let mut seen = 0;
    for page in pages {
        for link in links(&fs::read_to_string(&page).unwrap()) {
            seen += 1;
            if !page.with_file_name("").join(link).exists() {
                dead.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(seen > 10, "only {seen} links were found");
    assert_eq!(dead, [""; 0]);
}

#[test]
fn the_commands_of_the_tree_s_page_work() {
    commands_work("docs/tree.md", &["bash", "hexdump", "xxd", "strings"]);
}

#[test]
fn the_commands_of_the_events_page_work() {
    commands_work("docs/events.md", &["bash", "xxd", "strings", "jq", "python3"]);
}

fn commands_work(page: &str, programs: &[&str]) {
    let test = &format!("commands of {page}");
    if !programs.iter().all(|program| has(test, program)) {
        return;
    }
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
    let blocks = commands(&docs);
    assert!(blocks.len() >= 8, "{blocks:?}");
    let Some(live) = Live::mount(test, "emu:ram=64M", "") else { return };
    for block in blocks {
        // A pipe that `head` closes early is no failure.
        let mut shell = live.command("timeout");
        shell.args(["20", "bash", "-eu", "-c", &block]).current_dir(live.path(""));
        let output = shell.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && told.is_empty(), "{block}{told}");
    }
    // None of them was refused.
    assert!(live.errors().is_empty(), "{:?}", live.errors());
}
