//! Every label that one part of the kernel uses of another.

use iced_x86::code_asm::{CodeAssembler, CodeLabel};

use crate::mailbox::Site;

/// Declares the struct, its making, and the list of names for the symbol table.
macro_rules! labels {
    ($($name:ident)*) => {
        /// The labels of the kernel.
        pub struct Labels {
            $(pub(super) $name: CodeLabel,)*
            pub(super) sites: Vec<CodeLabel>,
        }

        impl Labels {
            /// Labels that stand nowhere yet.
            pub fn new(a: &mut CodeAssembler) -> Self {
                Self {
                    $($name: a.create_label(),)*
                    sites: Site::ALL.iter().map(|_| a.create_label()).collect(),
                }
            }

            /// All but the sites, with their names.
            pub fn named(&self) -> Vec<(&'static str, CodeLabel)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

labels! {
    entry pvh_landing pvh_first pvh_other
    kernel_tables process_tables map_lazy unmap_lazy
    common on_stack restore timer ipi soft spurious other_interrupt page_fault breakpoint invalid_opcode
    general_protection other_exception fault give_up own_inbox
    syscall sys_yield sys_unmap sys_done sys_answered sys_right sys_wrong
    schedule switch_away idle traffic rest
    perform order_fault order_copy_fault order_unknown order_done
}
