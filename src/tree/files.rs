//! The small files of the root: README, errors, cache.

use std::fmt::Write;

use super::row::{Need, Shape};
use super::{Ctx, Tree};
use crate::error::FsResult;

const HEAD: &str = "\
This directory is a virtual machine. Its files are the machine's parts:
";

const FOOT: &str = "
A file that can't be served is not there: `capabilities` says why. When something is refused, `errors` says
what was wrong. Numbers are hexadecimal with 0x; on input decimal and 0b work too.

";

/// What one can do with these files, and what that needs.
const EXAMPLES: &[(Need, &str)] = &[
    (Need::Nothing, "hexdump -C mem | head                      physical memory"),
    (Need::Execution, "echo pause > ctl; cat state                it stands still until 'resume'"),
    (Need::Registers, "cat vcpu/0/regs/all                        one instant of a vCPU"),
    (Need::Registers, "echo 'rax=1 rbx=2' > vcpu/0/regs/all       both are set, or none"),
    (Need::Events, "cat events/cr3                             changes of address space, as they happen"),
    (
        Need::Events,
        "exec 3<>events/cr3; read e <&3             now that vCPU waits, until its number and a verdict:",
    ),
    (Need::Events, "s=${e%% *}; echo ${s#seq=} continue >&3    in bash"),
    (Need::Views, "mkdir views/hooks; echo hooks > view       run on another view of memory"),
];

/// The files of this tree, one screen.
pub fn readme(ctx: &Ctx<'_>) -> FsResult<Vec<u8>> {
    let mut text = HEAD.to_owned();
    // Directories show themselves.
    for row in Tree::rows().iter().filter(|row| !matches!(row.shape, Shape::Dir)) {
        if row.need.met(ctx.tree.driver()).is_err() {
            continue;
        }
        let _ = writeln!(text, "  {:<27} {}", row.shown_path(), row.about);
    }
    text.push_str(FOOT);
    for (_, example) in EXAMPLES.iter().filter(|(need, _)| need.met(ctx.tree.driver()).is_ok()) {
        let _ = writeln!(text, "  {example}");
    }
    Ok(text.into_bytes())
}

/// The refusals that the caller may see.
pub fn errors(ctx: &Ctx<'_>) -> FsResult<Vec<u8>> {
    Ok(ctx.tree.refusals.show(ctx.caller).into_bytes())
}

/// What the page cache did. Live mappings are a driver's own; none keeps any yet, so there are copies alone.
pub fn cache(ctx: &Ctx<'_>) -> FsResult<Vec<u8>> {
    let counts = ctx.tree.memory.cache().counts();
    let active = if ctx.tree.memory.cache().active() { "yes" } else { "no" };
    let lines = [
        ("limit_bytes", ctx.tree.options.cache_bytes),
        ("cache_ms", ctx.tree.options.cache_ms),
        ("copies_pages", counts.pages),
        ("copies_hits", counts.hits),
        ("copies_misses", counts.misses),
        ("copies_stale", counts.stale),
        ("copies_evictions", counts.evictions),
    ];
    let mut text = format!("active {active}\n");
    for (key, value) in lines {
        let _ = writeln!(text, "{key} {value}");
    }
    Ok(text.into_bytes())
}
