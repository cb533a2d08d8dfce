//! The two handles of libkvmi that crate kvmi keeps to itself, out of what it prints of itself.

/// The addresses of `ctx` and `dom` in the `Debug` text of `kvmi::KVMi` 0.5.0, which is derived:
/// `KVMi { ctx: 0x..., dom: 0x..., libkvmi: ... }`. `None` where the text is another, or one of them is null.
#[must_use]
pub fn of(text: &str) -> Option<(usize, usize)> {
    let fields = text.strip_prefix("KVMi { ctx: 0x")?;
    let (ctx, fields) = fields.split_once(", dom: 0x")?;
    let (dom, _) = fields.split_once(", libkvmi: ")?;
    let number = |hex| usize::from_str_radix(hex, 16).ok().filter(|number| *number != 0);
    Some((number(ctx)?, number(dom)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_read_only_of_the_known_text() {
        let text =
            "KVMi { ctx: 0x55d0c0ffee00, dom: 0x7f0000001000, libkvmi: Libkvmi { .. }, expect_pause_ev: 0 }";
        assert_eq!(of(text), Some((0x55d0_c0ff_ee00, 0x7f00_0000_1000)));
        for other in
            ["", "KVMi { dom: 0x1, ctx: 0x2, libkvmi: x }", "KVMi { ctx: 0x0, dom: 0x1, libkvmi: x }"]
        {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
