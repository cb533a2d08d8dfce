//! The numbered words of the mailbox: counters, orders, sites.

/// Declares an enum of numbered words with their names, in one table.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $number:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[repr(u64)]
        pub enum $name { $($(#[$vdoc])* $variant = $number,)* }

        impl $name {
            /// All of them, by number.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name that the documentation uses.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

words! {
    /// What each vCPU counts, each at the instruction itself. The number is the word in the vCPU's counters.
    Counter {
        /// Rounds of the idle loop.
        Heartbeat = 0, "heartbeat";
        /// Timer interrupts.
        Ticks = 1, "ticks";
        /// Inter-processor interrupts.
        Ipis = 2, "ipis";
        /// mov to CR0, clts and lmsw.
        Cr0Writes = 3, "cr0_writes";
        /// mov to CR3.
        Cr3Writes = 4, "cr3_writes";
        /// mov to CR4.
        Cr4Writes = 5, "cr4_writes";
        /// mov to CR8.
        Cr8Writes = 6, "cr8_writes";
        /// mov from CR8.
        Cr8Reads = 7, "cr8_reads";
        /// wrmsr, since the vCPU set up its counters.
        MsrWrites = 8, "msr_writes";
        /// rdmsr.
        MsrReads = 9, "msr_reads";
        /// mov to a debug register.
        DrWrites = 10, "dr_writes";
        /// mov from a debug register.
        DrReads = 11, "dr_reads";
        /// cpuid.
        Cpuids = 12, "cpuids";
        /// out.
        Outs = 13, "outs";
        /// in.
        Ins = 14, "ins";
        /// #BP exceptions taken, in the kernel and in ring 3.
        Breakpoints = 15, "breakpoints";
        /// #DB exceptions taken.
        DebugExceptions = 16, "debug_exceptions";
        /// #PF exceptions taken.
        PageFaults = 17, "page_faults";
        /// #GP exceptions taken.
        GeneralProtections = 18, "general_protections";
        /// #UD exceptions taken.
        InvalidOpcodes = 19, "invalid_opcodes";
        /// Other exceptions taken.
        OtherExceptions = 20, "other_exceptions";
        /// Non-maskable interrupts.
        Nmis = 21, "nmis";
        /// System calls.
        Syscalls = 22, "syscalls";
        /// Switches between the kernel thread and the processes.
        Switches = 23, "switches";
        /// Pages mapped because a process touched them.
        LazyPages = 24, "lazy_pages";
        /// Code written and then executed with the right result.
        SelfModified = 25, "self_modified";
        /// Code written and then executed with a wrong result: always 0.
        SelfModifiedWrong = 26, "self_modified_wrong";
        /// Software interrupts by `int 0x81`.
        SoftInterrupts = 27, "soft_interrupts";
        /// Spurious interrupts.
        Spurious = 28, "spurious";
        /// Interrupts of a vector that the guest does not use.
        OtherInterrupts = 29, "other_interrupts";
        /// invlpg.
        Invlpgs = 30, "invlpgs";
        /// Orders done.
        Orders = 31, "orders";
        /// mov from CR0.
        Cr0Reads = 32, "cr0_reads";
        /// mov from CR3.
        Cr3Reads = 33, "cr3_reads";
        /// mov from CR4.
        Cr4Reads = 34, "cr4_reads";
        /// xsetbv.
        Xcr0Writes = 35, "xcr0_writes";
        /// lgdt, lidt, lldt and ltr, since the vCPU set up its counters.
        TableLoads = 36, "table_loads";
        /// sgdt, sidt, sldt and str.
        TableStores = 37, "table_stores";
        /// vmcall that came back.
        Vmcalls = 38, "vmcalls";
    }
}

words! {
    /// An order. The first argument of each is how many times, but for those that say otherwise. The number is its code.
    Op {
        /// Nothing.
        Nop = 1, "nop";
        /// `[0]`: 0 stops the background traffic of all vCPUs, 1 starts it. Done when every vCPU has seen it.
        Background = 2, "background";
        /// `[n, value]`: writes CR3. With value 0, the CR3 of the vCPU's two processes in turn. Result: the last value.
        WriteCr3 = 3, "write_cr3";
        /// `[n, mask]`: reads CR0, flips the bits of mask, writes it back. Result: the last value.
        WriteCr0 = 4, "write_cr0";
        /// `[n, mask]`: reads CR4, flips the bits of mask, writes it back. Result: the last value.
        WriteCr4 = 5, "write_cr4";
        /// `[n, value]`: writes CR8. At 14 and above the vCPU gets no more ticks and polls for orders without a pause.
        WriteCr8 = 6, "write_cr8";
        /// `[n]`: reads CR8. Result: the value.
        ReadCr8 = 7, "read_cr8";
        /// `[n, index, value]`: wrmsr.
        WriteMsr = 8, "write_msr";
        /// `[n, index]`: rdmsr. Result: the value.
        ReadMsr = 9, "read_msr";
        /// `[n, number, value]`: writes debug register 0 to 7. With CR4.DE clear, 4 and 5 are 6 and 7.
        WriteDr = 10, "write_dr";
        /// `[n, number]`: reads debug register 0 to 7. Result: the value.
        ReadDr = 11, "read_dr";
        /// `[n]`: int3 in the kernel.
        Int3 = 12, "int3";
        /// `[n]`: `int 0x81` in the kernel.
        SoftInterrupt = 13, "soft_interrupt";
        /// `[n, leaf, subleaf]`: cpuid. Results: EAX, EBX, ECX, EDX.
        Cpuid = 14, "cpuid";
        /// `[n, port, value, size]`: out of 1, 2 or 4 bytes.
        Out = 15, "out";
        /// `[n, port, size]`: in of 1, 2 or 4 bytes. Result: the value.
        In = 16, "in";
        /// `[n, gva, size]`: reads 1, 2, 4 or 8 bytes in ring 0, where gva = gpa. Result: the value.
        Read = 17, "read";
        /// `[n, gva, value, size]`: writes 1, 2, 4 or 8 bytes in ring 0.
        Write = 18, "write";
        /// `[n, gva]`: calls the code at gva in ring 0. Result: the RAX that it returned.
        Exec = 19, "exec";
        /// `[n, gva, value, len]`: rep stosb of len bytes in ring 0.
        Fill = 20, "fill";
        /// `[n, to, from, len]`: copies len bytes, 16 at a time by SSE moves and the rest by rep movsb, in ring 0.
        Copy = 21, "copy";
        /// `[n, gva]`: invlpg.
        Invlpg = 22, "invlpg";
        /// `[n]`: a loop of n rounds of two instructions.
        Spin = 23, "spin";
        /// `[n]`: hlt with interrupts on, n times.
        Hlt = 24, "hlt";
        /// Acknowledges, then halts with interrupts off, for good.
        Stop = 25, "stop";
        /// `[n, vcpu]`: sends the IPI to a vCPU, which may be itself.
        Ipi = 26, "ipi";
        /// `[n, gva, size]`: reads in ring 3, in the vCPU's first process. Result: the value.
        UserRead = 32, "user_read";
        /// `[n, gva, value, size]`: writes in ring 3.
        UserWrite = 33, "user_write";
        /// `[n, gva]`: calls the code at gva in ring 3. Result: the RAX that it returned.
        UserExec = 34, "user_exec";
        /// `[n]`: int3 in ring 3.
        UserInt3 = 35, "user_int3";
        /// `[n]`: n system calls that only count, and one more that ends the order.
        UserSyscall = 36, "user_syscall";
        /// `[n]`: n times: one system call that unmaps, then one page fault; and a last system call that ends the order.
        UserLazy = 37, "user_lazy";
        /// `[n]`: writes code into a page and executes it, n times. A system call each, and a last one that ends the order.
        UserSelfModify = 38, "user_self_modify";
        /// `[n]`: a loop of n rounds of two instructions in ring 3.
        UserSpin = 39, "user_spin";
        /// `[n, number]`: reads control register 0, 3 or 4. Result: the value.
        ReadCr = 48, "read_cr";
        /// `[n]`: clts.
        Clts = 49, "clts";
        /// `[n, value]`: lmsw.
        Lmsw = 50, "lmsw";
        /// `[n, value]`: xsetbv of XCR0. #UD unless CR4.OSXSAVE is set, by `write_cr4` where CPUID has XSAVE.
        WriteXcr0 = 51, "write_xcr0";
        /// `[n]`: xgetbv of XCR0. Result: the value.
        ReadXcr0 = 52, "read_xcr0";
        /// `[n, table, value]`: lgdt (0) or lidt (1) of the vCPU's own table with this limit; lldt (2) or ltr (3) of this
        /// selector. The TSS (0x30) is marked as not in use before.
        LoadTable = 53, "load_table";
        /// `[n, table]`: sgdt (0), sidt (1), sldt (2) or str (3). Results: base and limit, or the selector.
        StoreTable = 54, "store_table";
        /// `[n, rax, rbx, rcx]`: vmcall with these registers. #UD where the machine answers no requests. Result: the RAX
        /// that came back.
        Vmcall = 55, "vmcall";
        /// `[n, vcpu]`: sends an NMI to a vCPU, which may be itself.
        Nmi = 56, "nmi";
        /// `[n]`: as `spin`, with interrupts off. Result: the interrupts of other vectors that came meanwhile, always 0.
        ClosedSpin = 57, "closed_spin";
    }
}

words! {
    /// Instructions whose address the guest publishes, so that the RIP of an event can be compared.
    /// The number is the word after [`super::SITES`].
    Site {
        /// mov to CR3 in [`Op::WriteCr3`].
        WriteCr3 = 0, "write_cr3";
        /// mov to CR0 in [`Op::WriteCr0`].
        WriteCr0 = 1, "write_cr0";
        /// mov to CR4 in [`Op::WriteCr4`].
        WriteCr4 = 2, "write_cr4";
        /// mov to CR8 in [`Op::WriteCr8`].
        WriteCr8 = 3, "write_cr8";
        /// mov from CR8 in [`Op::ReadCr8`].
        ReadCr8 = 4, "read_cr8";
        /// wrmsr in [`Op::WriteMsr`].
        WriteMsr = 5, "write_msr";
        /// rdmsr in [`Op::ReadMsr`].
        ReadMsr = 6, "read_msr";
        /// int3 in [`Op::Int3`].
        Int3 = 7, "int3";
        /// int 0x81 in [`Op::SoftInterrupt`].
        SoftInterrupt = 8, "soft_interrupt";
        /// cpuid in [`Op::Cpuid`].
        Cpuid = 9, "cpuid";
        /// The 8-byte read of [`Op::Read`].
        Read8 = 10, "read8";
        /// The 8-byte write of [`Op::Write`].
        Write8 = 11, "write8";
        /// The call of [`Op::Exec`].
        Exec = 12, "exec";
        /// The loop of [`Op::Spin`].
        Spin = 13, "spin";
        /// hlt of the idle loop.
        IdleHlt = 14, "idle_hlt";
        /// mov to CR3 of the switch between contexts.
        SwitchCr3 = 15, "switch_cr3";
        /// mov from CR0 in [`Op::ReadCr`].
        ReadCr0 = 16, "read_cr0";
        /// mov from CR3 in [`Op::ReadCr`].
        ReadCr3 = 17, "read_cr3";
        /// mov from CR4 in [`Op::ReadCr`].
        ReadCr4 = 18, "read_cr4";
        /// clts in [`Op::Clts`].
        Clts = 19, "clts";
        /// lmsw in [`Op::Lmsw`].
        Lmsw = 20, "lmsw";
        /// xsetbv in [`Op::WriteXcr0`].
        WriteXcr0 = 21, "write_xcr0";
        /// vmcall in [`Op::Vmcall`].
        Vmcall = 22, "vmcall";
        /// lgdt in [`Op::LoadTable`].
        Lgdt = 23, "lgdt";
        /// lidt in [`Op::LoadTable`].
        Lidt = 24, "lidt";
        /// lldt in [`Op::LoadTable`].
        Lldt = 25, "lldt";
        /// ltr in [`Op::LoadTable`].
        Ltr = 26, "ltr";
        /// sgdt in [`Op::StoreTable`].
        Sgdt = 27, "sgdt";
        /// sidt in [`Op::StoreTable`].
        Sidt = 28, "sidt";
        /// sldt in [`Op::StoreTable`].
        Sldt = 29, "sldt";
        /// str in [`Op::StoreTable`].
        Str = 30, "str";
        /// The 1-byte out of [`Op::Out`].
        Out1 = 31, "out1";
        /// The 2-byte out of [`Op::Out`].
        Out2 = 32, "out2";
        /// The 4-byte out of [`Op::Out`].
        Out4 = 33, "out4";
        /// The 1-byte in of [`Op::In`].
        In1 = 34, "in1";
        /// The 2-byte in of [`Op::In`].
        In2 = 35, "in2";
        /// The 4-byte in of [`Op::In`].
        In4 = 36, "in4";
        /// mov to DR0 in [`Op::WriteDr`].
        WriteDr0 = 37, "write_dr0";
        /// mov to DR1 in [`Op::WriteDr`].
        WriteDr1 = 38, "write_dr1";
        /// mov to DR2 in [`Op::WriteDr`].
        WriteDr2 = 39, "write_dr2";
        /// mov to DR3 in [`Op::WriteDr`].
        WriteDr3 = 40, "write_dr3";
        /// mov to DR4 in [`Op::WriteDr`].
        WriteDr4 = 41, "write_dr4";
        /// mov to DR5 in [`Op::WriteDr`].
        WriteDr5 = 42, "write_dr5";
        /// mov to DR6 in [`Op::WriteDr`].
        WriteDr6 = 43, "write_dr6";
        /// mov to DR7 in [`Op::WriteDr`].
        WriteDr7 = 44, "write_dr7";
        /// mov from DR0 in [`Op::ReadDr`].
        ReadDr0 = 45, "read_dr0";
        /// mov from DR1 in [`Op::ReadDr`].
        ReadDr1 = 46, "read_dr1";
        /// mov from DR2 in [`Op::ReadDr`].
        ReadDr2 = 47, "read_dr2";
        /// mov from DR3 in [`Op::ReadDr`].
        ReadDr3 = 48, "read_dr3";
        /// mov from DR4 in [`Op::ReadDr`].
        ReadDr4 = 49, "read_dr4";
        /// mov from DR5 in [`Op::ReadDr`].
        ReadDr5 = 50, "read_dr5";
        /// mov from DR6 in [`Op::ReadDr`].
        ReadDr6 = 51, "read_dr6";
        /// mov from DR7 in [`Op::ReadDr`].
        ReadDr7 = 52, "read_dr7";
        /// The loop of [`Op::ClosedSpin`].
        ClosedSpin = 53, "closed_spin";
    }
}
