//! The tree as a user sees it: names, kinds and modes against a golden file, and the docs against the table.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::path::Path;

use common::live::Live;
use vmtree::tree::Tree;

fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What `find` prints of the mount: kind and mode, path.
fn found(live: &Live) -> String {
    let mut find = live.command("find");
    let output = find.arg(".").args(["-printf", "%M %p\\n"]).current_dir(live.path("")).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Run with UPDATE_GOLDEN=1 to write the file anew after a change of the tree that is meant.
#[test]
fn the_tree_of_the_built_in_machine() {
    let Some(live) = Live::mount("golden tree", "emu:ram=64M,vcpus=1", "") else { return };
    let found = found(&live);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/emu.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &found).unwrap();
    }
    assert_eq!(found, file("tests/golden/emu.txt"), "UPDATE_GOLDEN=1 writes it anew");
    // ls and find agree with what can be opened by name, and a second vCPU looks like the first.
    let Some(two) = Live::mount("two vCPUs", "emu:ram=64M,vcpus=2", "") else { return };
    let first: Vec<String> = lines_below(&self::found(&two), "./vcpu/0");
    assert_eq!(first, lines_below(&self::found(&two), "./vcpu/1"));
    assert_eq!(first, lines_below(&found, "./vcpu/0"));
}

fn lines_below(found: &str, directory: &str) -> Vec<String> {
    found.lines().filter(|line| line.contains(directory)).map(|line| line.replace(directory, "")).collect()
}

/// The rows of THE table: their paths as the docs write them, and what they are. The root is left out.
fn rows() -> impl Iterator<Item = (String, &'static str)> {
    Tree::rows().iter().skip(1).map(|row| (row.shown_path(), row.about))
}

#[test]
fn every_row_is_in_the_docs() {
    let docs = file("docs/tree.md");
    for (path, _) in rows() {
        assert!(docs.contains(&format!("`{path}`")), "docs/tree.md does not have `{path}`");
    }
}

#[test]
fn the_readme_of_a_mount_has_each_row_that_is_there() {
    let Some(live) = Live::mount("README of a mount", "emu:ram=64M", "") else { return };
    let readme = live.text("README");
    std::fs::create_dir(live.path("views/hooks")).unwrap();
    for (path, about) in rows() {
        // Its place on the mount: the first vCPU, a register, a block, a view, a kind.
        let real = path.replace("regs/NAME", "regs/rax").replace("ram/NAME", "ram/low").replace("/N/", "/0/");
        let real = real.replace("views/NAME", "views/hooks").replace("KIND,KEY=VALUE...", "cr3,vcpu=0");
        let real = live.path(&real.replace("KIND", "cr3").replace("=ADDR", "=0x1000"));
        // Directories show themselves.
        let there = real.is_file();
        let line = readme.lines().find(|line| line.trim_start().split(' ').next() == Some(&path));
        assert_eq!(there, line.is_some(), "{path}");
        assert!(line.is_none_or(|line| line.ends_with(about)), "{line:?}: {about}");
    }
    assert!(
        readme.lines().count() <= 40 && readme.lines().all(|line| line.len() <= 120),
        "one screen: {readme}"
    );
}
