//! What the guest can be ordered to do that raises an event: a row a kind and way, with the records that must come of it.

use vmtree_guest::Outcome;
use vmtree_guest::mailbox::{Counter, Op, Site, header};

use crate::Checked;
use crate::event::{Fields, Record, number};
use crate::vm::Vm;

/// AM of CR0 and TSD and DE of CR4, which the guest does not use (Intel SDM volume 3A, 2.5).
const AM: u64 = 1 << 18;
const TSD: u64 = 1 << 2;
const DE: u64 = 1 << 3;
/// CR4.OSXSAVE, and CPUID's bit of XSAVE in leaf 1, ECX.
const OSXSAVE: u64 = 1 << 18;
const XSAVE: u64 = 1 << 26;
const KERNEL_GS_BASE: u64 = 0xc000_0102;

/// An order.
pub type Order = (Op, Vec<u64>);

/// An order that raises events, on one vCPU.
#[derive(Clone)]
pub struct Act {
    pub kind: &'static str,
    /// `to`, `from`, or empty for kinds without a direction.
    pub way: &'static str,
    /// Parameters that pick these events among those of the kind, each with its comma.
    pub params: String,
    pub vcpu: u64,
    /// Ordered before, while nothing is armed.
    pub before: Vec<Order>,
    pub order: Order,
    /// Ordered afterwards, while nothing is armed. Of CR0 and CR4, which the guest only flips, the value to have again.
    pub after: Vec<Order>,
    /// What the guest counts, once a record.
    pub counter: Option<Counter>,
    /// What each record tells, beside what all tell.
    pub records: Vec<Fields>,
    pub rip: u64,
    /// Reads what the order writes, in another way.
    pub probe: Option<Order>,
    /// A value to answer with instead of the one that the guest writes, or reads.
    pub other: u64,
}

impl Act {
    /// Its event file.
    pub fn file(&self) -> String {
        let dir = if self.way.is_empty() { String::new() } else { format!(",dir={}", self.way) };
        let dir = if self.kind == "xcr0" { String::new() } else { dir };
        format!("events/{}{}{dir}", self.kind, self.params)
    }

    /// What it is called in words.
    pub fn name(&self) -> String {
        format!("{} {}{} on vCPU {}", self.kind, self.way, self.params, self.vcpu)
    }

    /// Its first argument, how many times, set to one.
    pub fn once(mut self) -> Self {
        if let Some(times) = self.order.1.first_mut() {
            *times = 1;
        }
        self.records.truncate(1);
        self
    }

    /// Checks what a record of it tells.
    pub fn check(&self, vm: &Vm, nth: usize, record: &Record) -> Checked {
        let mut wanted: Fields = vec![
            ("vcpu", number(self.vcpu)),
            ("kind", self.kind.to_owned()),
            ("rip", number(self.rip)),
            ("view", number(0)),
        ];
        let fields = self.records.get(nth).ok_or("a record too many")?;
        if !fields.iter().any(|(name, _)| *name == "cr3") {
            wanted.push(("cr3", number(vm.header(header::KERNEL_CR3)?)));
        }
        if !self.way.is_empty() {
            wanted.push(("dir", self.way.to_owned()));
        }
        wanted.extend(fields.iter().cloned());
        record.check(&format!("record {nth} of {}", self.name()), &wanted)
    }

    fn moved(mut self, counter: Counter) -> Self {
        self.counter = Some(counter);
        self
    }

    fn probed(mut self, probe: Order, other: u64) -> Self {
        self.probe = Some(probe);
        self.other = other;
        self
    }
}

/// What an act is made from.
struct Maker<'a> {
    vm: &'a Vm,
    vcpu: u64,
}

impl Maker<'_> {
    fn site(&self, site: Site) -> Result<u64, String> {
        self.vm.mailbox.site(site).map_err(|error| error.to_string())
    }

    fn act(
        &self,
        (kind, way): (&'static str, &'static str),
        order: Order,
        site: Site,
        records: Vec<Fields>,
    ) -> Result<Act, String> {
        Ok(Act {
            kind,
            way,
            params: String::new(),
            vcpu: self.vcpu,
            before: Vec::new(),
            order,
            after: Vec::new(),
            counter: None,
            records,
            rip: self.site(site)?,
            probe: None,
            other: 0,
        })
    }

    fn read(&self, op: Op, args: &[u64]) -> Result<u64, String> {
        self.vm.order(self.vcpu, op, args)
    }

    /// Writes of a register, the values one after the other from the one that it has.
    fn writes(&self, values: &[u64], more: &[(&'static str, u64)]) -> Vec<Fields> {
        let pair = |pair: &[u64]| {
            let [old, new] = [pair.first(), pair.last()].map(|value| number(value.copied().unwrap_or(0)));
            let more = more.iter().map(|(name, value)| (*name, number(*value)));
            [("old", old), ("new", new)].into_iter().chain(more).collect()
        };
        values.windows(2).map(pair).collect()
    }

    /// So many reads of a value.
    fn reads(&self, times: usize, value: u64, more: &[(&'static str, u64)]) -> Vec<Fields> {
        let more = more.iter().map(|(name, value)| (*name, number(*value)));
        vec![[("value", number(value))].into_iter().chain(more).collect(); times]
    }

    fn control(&self) -> Result<Vec<Act>, String> {
        let (kernel, vm) = (self.vm.header(header::KERNEL_CR3)?, self.vm);
        let process = |n| vm.mailbox.process_cr3(self.vcpu, n).map_err(|error| error.to_string());
        let (first, second) = (process(0)?, process(1)?);
        let (cr0, cr4) = (self.read(Op::ReadCr, &[1, 0])?, self.read(Op::ReadCr, &[1, 4])?);
        let cr = |n| (Op::ReadCr, vec![1, n]);
        let mut cr3 = self.writes(&[kernel, first, second], &[]);
        cr3.iter_mut().for_each(|fields| {
            let old = fields.first().map(|(_, old)| old.clone()).unwrap_or_default();
            fields.push(("cr3", old));
        });
        let mut to = vec![
            self.act(
                ("cr0", "to"),
                (Op::WriteCr0, vec![2, AM]),
                Site::WriteCr0,
                self.writes(&[cr0, cr0 ^ AM, cr0], &[]),
            )?
            .moved(Counter::Cr0Writes)
            .probed(cr(0), cr0 ^ (1 << 16)),
            self.act(("cr3", "to"), (Op::WriteCr3, vec![2, 0]), Site::WriteCr3, cr3)?
                .moved(Counter::Cr3Writes)
                .probed(cr(3), second),
            self.act(
                ("cr4", "to"),
                (Op::WriteCr4, vec![2, TSD]),
                Site::WriteCr4,
                self.writes(&[cr4, cr4 ^ TSD, cr4], &[]),
            )?
            .moved(Counter::Cr4Writes)
            .probed(cr(4), cr4 ^ DE),
            self.act(
                ("cr8", "to"),
                (Op::WriteCr8, vec![2, 5]),
                Site::WriteCr8,
                self.writes(&[0, 5, 5], &[]),
            )?
            .moved(Counter::Cr8Writes)
            .probed((Op::ReadCr8, vec![1]), 7),
        ];
        let after = [(Op::WriteCr0, cr0), (Op::WriteCr3, kernel), (Op::WriteCr4, cr4), (Op::WriteCr8, 0)];
        for (act, (op, value)) in to.iter_mut().zip(after) {
            act.after = vec![(op, vec![1, value])];
        }
        let from = [
            ("cr0", cr(0), Site::ReadCr0, cr0, Counter::Cr0Reads),
            ("cr3", cr(3), Site::ReadCr3, kernel, Counter::Cr3Reads),
            ("cr4", cr(4), Site::ReadCr4, cr4, Counter::Cr4Reads),
            ("cr8", (Op::ReadCr8, vec![1]), Site::ReadCr8, 0, Counter::Cr8Reads),
        ];
        for (kind, (op, args), site, value, counter) in from {
            let args = [3].into_iter().chain(args.into_iter().skip(1)).collect();
            let act = self.act((kind, "from"), (op, args), site, self.reads(3, value, &[]))?;
            to.push(Act { other: 9, ..act.moved(counter) });
        }
        Ok(to)
    }

    fn debug(&self) -> Result<Vec<Act>, String> {
        let mut all = Vec::new();
        let sites = [(0, 0x1000, Site::WriteDr0, Site::ReadDr0), (3, 0x7000, Site::WriteDr3, Site::ReadDr3)];
        for (reg, value, write, read) in sites {
            let old = self.read(Op::ReadDr, &[1, reg])?;
            let (index, more) = (format!(",index={reg}"), [("reg", reg)]);
            let to = self.act(
                ("dr", "to"),
                (Op::WriteDr, vec![2, reg, value]),
                write,
                self.writes(&[old, value, value], &more),
            )?;
            let to = to.moved(Counter::DrWrites).probed((Op::ReadDr, vec![1, reg]), 0x5000);
            all.push(Act { params: index.clone(), after: vec![(Op::WriteDr, vec![1, reg, old])], ..to });
            let from =
                self.act(("dr", "from"), (Op::ReadDr, vec![2, reg]), read, self.reads(2, old, &more))?;
            all.push(Act { params: index, other: 0x5000, ..from.moved(Counter::DrReads) });
        }
        Ok(all)
    }

    fn msr(&self) -> Result<Vec<Act>, String> {
        let old = self.read(Op::ReadMsr, &[1, KERNEL_GS_BASE])?;
        let (value, more) = (0xffff_8000_1234_0000, [("index", KERNEL_GS_BASE)]);
        let params = format!(",index={KERNEL_GS_BASE:#x}");
        let write = (Op::WriteMsr, vec![2, KERNEL_GS_BASE, value]);
        let to = self.act(("msr", "to"), write, Site::WriteMsr, self.writes(&[old, value, value], &more))?;
        let to = to
            .moved(Counter::MsrWrites)
            .probed((Op::ReadMsr, vec![1, KERNEL_GS_BASE]), 0xffff_8000_5678_0000);
        let after = vec![(Op::WriteMsr, vec![1, KERNEL_GS_BASE, old])];
        let from = self.act(
            ("msr", "from"),
            (Op::ReadMsr, vec![3, KERNEL_GS_BASE]),
            Site::ReadMsr,
            self.reads(3, old, &more),
        )?;
        let from = Act { other: 0x1234_5678_9abc_def0, ..from.moved(Counter::MsrReads) };
        Ok(vec![Act { params: params.clone(), after, ..to }, Act { params, ..from }])
    }

    /// Where the vCPU has XSAVE.
    fn xcr0(&self) -> Result<Vec<Act>, String> {
        let leaf = self.vm.outcome(self.vcpu, Op::Cpuid, &[1, 1])?;
        if !matches!(leaf, Outcome::Done([_, _, ecx, _]) if ecx & XSAVE != 0) {
            return Ok(Vec::new());
        }
        let flip = || (Op::WriteCr4, vec![1, OSXSAVE]);
        let (op, args) = flip();
        self.read(op, &args)?;
        let old = self.read(Op::ReadXcr0, &[1]);
        self.read(op, &args)?;
        let old = old?;
        // Once: Xen does not tell of a write of the value that is there.
        let value = old ^ 2;
        let records = self.writes(&[old, value], &[]);
        let act = self.act(("xcr0", "to"), (Op::WriteXcr0, vec![1, value]), Site::WriteXcr0, records)?;
        let act = act.moved(Counter::Xcr0Writes).probed((Op::ReadXcr0, vec![1]), old);
        Ok(vec![Act { before: vec![flip()], after: vec![(Op::WriteXcr0, vec![1, old]), flip()], ..act }])
    }

    fn interrupts(&self) -> Result<Vec<Act>, String> {
        let soft = self.vm.header(header::SOFT_VECTOR)?;
        let fields = vec![("vector", number(soft)), ("type", "swint".to_owned())];
        let int =
            self.act(("interrupt", ""), (Op::SoftInterrupt, vec![3]), Site::SoftInterrupt, vec![fields; 3])?;
        let int = Act { params: format!(",vector={soft}"), ..int.moved(Counter::SoftInterrupts) };
        let fields = vec![("gpa", number(self.site(Site::Int3)?)), ("len", number(1))];
        let int3 = self.act(("breakpoint", ""), (Op::Int3, vec![3]), Site::Int3, vec![fields; 3])?;
        Ok(vec![int, int3.moved(Counter::Breakpoints)])
    }

    fn instructions(&self) -> Result<Vec<Act>, String> {
        let leaf = vec![("leaf", number(7)), ("subleaf", number(0))];
        let cpuid = self.act(("cpuid", ""), (Op::Cpuid, vec![2, 7, 0]), Site::Cpuid, vec![leaf; 2])?;
        let mut all = vec![Act { other: 0x11, ..cpuid.moved(Counter::Cpuids) }];
        // POST codes: a port that every PC has, and nobody reads. Xen leaves it to the hardware; the next one is as free.
        let port = if is_xen(self.vm)? { 0x84 } else { 0x80 };
        for (size, value, out, input) in
            [(1, 0xa5, Site::Out1, Site::In1), (4, 0x1234_5678, Site::Out4, Site::In4)]
        {
            let fields = vec![("port", number(port)), ("bytes", number(size))];
            let mut with = fields.clone();
            with.push(("value", number(value)));
            let to = self.act(("io", "to"), (Op::Out, vec![2, port, value, size]), out, vec![with; 2])?;
            all.push(Act { other: 0x11, ..to.moved(Counter::Outs) });
            let from = self.act(("io", "from"), (Op::In, vec![2, port, size]), input, vec![fields; 2])?;
            all.push(Act { other: 0x11, ..from.moved(Counter::Ins) });
        }
        let tables = [
            ("gdtr", 0x3f, Site::Lgdt, Site::Sgdt),
            ("idtr", 0xfff, Site::Lidt, Site::Sidt),
            ("ldtr", 0, Site::Lldt, Site::Sldt),
            ("tr", 0x30, Site::Ltr, Site::Str),
        ];
        for (n, (table, value, load, store)) in (0..).zip(tables) {
            let fields = vec![vec![("table", table.to_owned())]; 2];
            let to =
                self.act(("descriptor", "to"), (Op::LoadTable, vec![2, n, value]), load, fields.clone())?;
            all.push(to.moved(Counter::TableLoads));
            let from = self.act(("descriptor", "from"), (Op::StoreTable, vec![2, n]), store, fields)?;
            all.push(from.moved(Counter::TableStores));
        }
        // Where nobody answers, vmcall may be #UD, which ends the order: one record.
        let request =
            self.act(("guest_request", ""), (Op::Vmcall, vec![1, 5, 6, 7]), Site::Vmcall, vec![Vec::new()])?;
        all.push(Act { other: 0x99, ..request });
        Ok(all)
    }
}

/// Whether the mount is of a Xen domain.
fn is_xen(vm: &Vm) -> Result<bool, String> {
    Ok(vm.text("info")?.lines().any(|line| line == "driver xen"))
}

/// All that the mount has events for, on one vCPU. The guest is quiet.
pub fn acts(vm: &Vm, vcpu: u64) -> Result<Vec<Act>, String> {
    let maker = Maker { vm, vcpu };
    let all = [
        maker.control()?,
        maker.xcr0()?,
        maker.debug()?,
        maker.msr()?,
        maker.interrupts()?,
        maker.instructions()?,
    ];
    let mut all: Vec<Act> = all.into_iter().flatten().collect();
    all.retain(|act| vm.offers(format!("event {} {}", act.kind, act.way).trim_end()));
    // Xen's request is one hypercall of many, which the guest does not make.
    let xen = is_xen(vm)?;
    all.retain(|act| !xen || act.kind != "guest_request");
    ensure!(!all.is_empty(), "no kind of event is offered that the guest can be ordered to raise");
    Ok(all)
}

/// The same, on the first and on the last vCPU.
pub fn all_acts(vm: &Vm) -> Result<Vec<Act>, String> {
    let mut all = acts(vm, 0)?;
    if vm.vcpus > 1 {
        all.extend(acts(vm, vm.vcpus - 1)?);
    }
    Ok(all)
}
