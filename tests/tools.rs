//! The tools people use on files, on a real mount of the built-in machine: each script of tests/scripts is a test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;

use common::live::{Live, has};

/// Runs a script on a mount of `source`, unless a program that it needs is missing.
fn run(script: &str, source: &str, needs: &[&str]) {
    if !needs.iter().all(|program| has(script, program)) {
        return;
    }
    let Some(live) = Live::mount(script, source, "") else { return };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts").join(script);
    let output = live.command("timeout").arg("60").arg(path).arg(live.path("")).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{script}: {}\n{told}errors:\n{}", output.status, live.text("errors"));
}

macro_rules! scripts {
    ($($name:ident $script:literal $source:literal $needs:expr;)*) => {
        $(
            #[test]
            fn $name() {
                run($script, $source, &$needs);
            }
        )*

        #[test]
        fn every_script_is_a_test() {
            let mut listed = vec![$($script.to_owned()),*];
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
            let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
            let mut found: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
            found.retain(|name| name.ends_with(".sh"));
            found.sort();
            listed.sort();
            assert_eq!(found, listed);
        }
    };
}

scripts! {
    dd_reads_and_writes "dd.sh" "emu:ram=64M" [];
    hexdump_xxd_and_od_agree "dumps.sh" "emu:ram=64M" ["hexdump", "xxd", "od"];
    cp_skips_the_hole "cp.sh" "emu:ram=64M" [];
    tar_skips_the_hole_and_back "tar.sh" "emu:ram=8M" ["tar"];
    mem_and_ram_have_the_same_sums "sums.sh" "emu:ram=64M" ["bash", "md5sum"];
    grep_and_strings_find_text "search.sh" "emu:ram=64M" ["grep", "strings"];
    python_reads_writes_and_maps "python.sh" "emu:ram=64M" ["python3"];
    everything_can_be_looked_at "walk.sh" "emu:ram=64M" ["bash", "find", "flock"];
    shells_write_registers "regs.sh" "emu:ram=64M" ["bash", "dash", "xxd"];
    pause_step_and_resume "pause.sh" "emu:ram=64M" ["md5sum"];
    msrs_by_dd_and_python "msr.sh" "emu:ram=64M" ["python3", "od"];
    virtual_memory_is_where_translate_says "vmem.sh" "emu:ram=64M" ["xxd"];
}
