//! The commands of an introspector, carried out on the built-in machine.

use std::collections::BTreeMap;

use vmtree_api::events::Inject;
use vmtree_api::x86::{self, PagingMode};
use vmtree_api::{Access, Driver, Gpa, Gva, VcpuId};

use crate::raise::registers;
use crate::state::State;
use crate::wire::{BadSize, Fields, Message, error, event, id};
use crate::{frames, layout, views};

const PAGE: u64 = 4096;
/// What the hardware has: VMFUNC and EPTP switching, a byte each.
const FEATURES: u32 = 0x0001_0100;

/// What becomes of a command: the data of its answer, or an error number; a bad size ends the connection.
pub type Done = Result<Result<Vec<u8>, i32>, BadSize>;

/// The commands that are there, for CHECK_COMMAND.
const KNOWN: &[u16] = &[
    id::GET_VERSION,
    id::CHECK_COMMAND,
    id::CHECK_EVENT,
    id::GET_GUEST_INFO,
    id::PAUSE_VCPU,
    id::CONTROL_VM_EVENTS,
    id::CONTROL_EVENTS,
    id::CONTROL_CR,
    id::CONTROL_MSR,
    id::GET_REGISTERS,
    id::SET_REGISTERS,
    id::READ_PHYSICAL,
    id::WRITE_PHYSICAL,
    id::INJECT_EXCEPTION,
    id::SET_PAGE_ACCESS,
    id::CONTROL_CMD_RESPONSE,
    id::GET_MAX_GFN,
    id::SWITCH_EPT_VIEW,
    id::GET_EPT_VIEW,
    id::TRANSLATE_GVA,
    id::GET_XCR,
    id::ALLOC_GFN,
    id::FREE_GFN,
    id::CREATE_EPT_VIEW,
    id::DESTROY_EPT_VIEW,
    id::CHANGE_GFN,
    id::CONTROL_SINGLESTEP,
];

/// The events that can be switched on for a vCPU.
const EVENTS: &[u8] = &[
    event::CR,
    event::MSR,
    event::BREAKPOINT,
    event::PF,
    event::DESCRIPTOR,
    event::SINGLESTEP,
    event::CPUID,
];

/// Where a command looks and what it changes.
pub struct Host<'a> {
    /// The connection.
    pub state: &'a mut State,
    /// The machine.
    pub driver: &'a dyn Driver,
}

fn ok(data: impl Into<Vec<u8>>) -> Done {
    Ok(Ok(data.into()))
}

fn fail(error: i32) -> Done {
    Ok(Err(error))
}

impl Host<'_> {
    /// Carries a command out.
    ///
    /// # Errors
    /// Its size is not that of such a command.
    pub fn run(&mut self, message: &Message) -> Done {
        let fields = Fields(&message.data);
        match message.id {
            id::GET_VERSION => self.empty(fields, &[1, 0, FEATURES, 0]),
            id::GET_GUEST_INFO => self.empty(fields, &[self.state.vcpus.len() as u32, 0, 0, 0]),
            id::GET_MAX_GFN => {
                fields.end()?;
                ok((self.driver.memory().map().ram_end() / PAGE).to_le_bytes())
            }
            id::CHECK_COMMAND => check(fields, |id| KNOWN.contains(&id)),
            id::CHECK_EVENT => check(fields, |id| EVENTS.iter().any(|event| u16::from(*event) == id)),
            id::READ_PHYSICAL | id::WRITE_PHYSICAL => self.memory(message.id, fields),
            id::SET_PAGE_ACCESS => self.access(fields),
            id::CONTROL_VM_EVENTS => {
                let mut fields = fields;
                let unhook = fields.number(8)? & 0xffff == u64::from(event::UNHOOK);
                fields.end()?;
                if unhook { ok([]) } else { fail(error::INVAL) }
            }
            id::CREATE_EPT_VIEW | id::DESTROY_EPT_VIEW => views::of_vm(self, message.id, fields),
            _ if KNOWN.contains(&message.id) => self.of_vcpu(message.id, fields),
            _ => fail(error::NOSYS),
        }
    }

    fn empty(&self, fields: Fields<'_>, words: &[u32]) -> Done {
        fields.end()?;
        ok(words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>())
    }

    fn memory(&mut self, id: u16, mut fields: Fields<'_>) -> Done {
        let (gpa, size) = (fields.number(8)?, fields.number(8)?);
        if size == 0 || size > PAGE - gpa % PAGE {
            return fail(error::INVAL);
        }
        if id == id::READ_PHYSICAL {
            fields.end()?;
            let mut page = vec![0; size as usize];
            return if frames::read(self, gpa, &mut page) { ok(page) } else { fail(error::NOENT) };
        }
        let data = fields.take(size as usize)?;
        fields.end()?;
        if frames::write(self, gpa, data) { ok([]) } else { fail(error::NOENT) }
    }

    fn access(&mut self, mut fields: Fields<'_>) -> Done {
        let (view, count) = (fields.number(2)? as u32, fields.number(2)?);
        fields.take(4)?;
        let mut set = BTreeMap::new();
        for _ in 0..count {
            let (gpa, bits) = (fields.number(8)?, fields.number(8)?);
            if bits > 7 || self.driver.memory().read(Gpa(gpa), &mut [0]).is_err() {
                return fail(error::INVAL);
            }
            set.insert(gpa / PAGE, bits);
        }
        fields.end()?;
        if view != 0 && !self.state.views.contains(&view) {
            return fail(error::INVAL);
        }
        let before = self.state.permissions.clone();
        for (gfn, bits) in set {
            let rights = [Access::READ, Access::WRITE, Access::EXECUTE];
            let on = (0..).zip(rights).filter(|(n, _)| bits >> n & 1 == 1);
            let access = on.fold(Access::NONE, |all, (_, one)| all.union(one));
            self.state.permissions.set(view, gfn, access);
        }
        // Write without read is what no EPT has.
        if self.state.arm(self.driver).is_err() {
            self.state.permissions = before;
            return fail(error::INVAL);
        }
        ok([])
    }

    fn of_vcpu(&mut self, id: u16, mut fields: Fields<'_>) -> Done {
        let vcpu = fields.number(2)? as usize;
        fields.take(6)?;
        if vcpu >= self.state.vcpus.len() {
            return fail(error::INVAL);
        }
        match id {
            id::PAUSE_VCPU => self.pause(vcpu, fields),
            id::GET_REGISTERS => self.registers(vcpu, fields),
            id::SET_REGISTERS => {
                let wanted = layout::general_of(&mut fields)?;
                fields.end()?;
                match self.state.vcpus.get_mut(vcpu) {
                    Some(vcpu) if vcpu.at.is_some() => vcpu.registers = wanted,
                    _ => return fail(error::OPNOTSUPP),
                }
                ok([])
            }
            id::INJECT_EXCEPTION => self.inject(vcpu, fields),
            id::TRANSLATE_GVA => {
                let gva = fields.number(8)?;
                fields.end()?;
                ok(self.translate(vcpu, gva).to_le_bytes())
            }
            id::GET_XCR => {
                let xcr = fields.number(8)?;
                fields.end()?;
                if xcr != 0 {
                    return fail(error::INVAL);
                }
                ok(registers(self.driver, vcpu).xcr0.to_le_bytes())
            }
            id::CONTROL_EVENTS | id::CONTROL_CR | id::CONTROL_MSR | id::CONTROL_SINGLESTEP => {
                self.control(id, vcpu, fields)
            }
            _ => views::of_vcpu(self, id, vcpu, fields),
        }
    }

    fn pause(&mut self, vcpu: usize, mut fields: Fields<'_>) -> Done {
        let wait = fields.number(8)?;
        fields.end()?;
        if wait > 1 {
            return fail(error::INVAL);
        }
        if self.state.pause.is_none() {
            self.state.pause = self.driver.execution().ok().and_then(|execution| execution.pause().ok());
        }
        match self.state.vcpus.get_mut(vcpu) {
            Some(vcpu) if vcpu.pauses < 16 => vcpu.pauses += 1,
            _ => return fail(error::BUSY),
        }
        ok([])
    }

    fn registers(&mut self, vcpu: usize, mut fields: Fields<'_>) -> Done {
        let count = fields.number(8)?;
        let mut indexes = Vec::new();
        for _ in 0..count {
            indexes.push(fields.number(4)? as u32);
        }
        fields.end()?;
        let regs = registers(self.driver, vcpu);
        let mut reply = u64::from(layout::mode(&regs)).to_le_bytes().to_vec();
        reply.extend(layout::registers(&regs));
        reply.extend(count.to_le_bytes());
        let Ok(Ok(msrs)) = self.driver.registers().map(|registers| registers.msrs()) else {
            return fail(error::OPNOTSUPP);
        };
        for index in indexes {
            let Ok(value) = msrs.read(VcpuId(vcpu as u32), index) else { return fail(error::INVAL) };
            reply.extend(u64::from(index).to_le_bytes());
            reply.extend(value.to_le_bytes());
        }
        ok(reply)
    }

    fn inject(&mut self, vcpu: usize, mut fields: Fields<'_>) -> Done {
        let (vector, code, address) = (fields.number(4)?, fields.number(4)? as u32, fields.number(8)?);
        fields.end()?;
        let Ok(vector) = u8::try_from(vector) else { return fail(error::INVAL) };
        let has_code = matches!(vector, 8 | 10..=13 | 17 | 21);
        let what = match vector {
            14 => Inject::PageFault { address: Gva(address), error: code },
            0..=31 => Inject::Exception { vector, error: has_code.then_some(code) },
            _ => return fail(error::INVAL),
        };
        let Some(state) = self.state.vcpus.get_mut(vcpu) else { return fail(error::INVAL) };
        if state.at.is_some() {
            if state.injected.is_some() {
                return fail(error::BUSY);
            }
            state.injected = Some(what);
            return ok([]);
        }
        match self.driver.injection().map(|injection| injection.inject(VcpuId(vcpu as u32), what)) {
            Ok(Ok(())) => ok([]),
            Ok(Err(refused)) if refused.kind() == vmtree_api::ErrorKind::Busy => fail(error::BUSY),
            _ => fail(error::INVAL),
        }
    }

    fn translate(&self, vcpu: usize, gva: u64) -> u64 {
        let mode = PagingMode::from(&registers(self.driver, vcpu));
        let read = |gpa: Gpa| {
            let mut entry = [0; 8];
            self.driver.memory().read(gpa, &mut entry).map(|_| u64::from_le_bytes(entry))
        };
        match x86::walk(&mode, Gva(gva), read) {
            Ok(Ok(walk)) => walk.gpa.0,
            _ => u64::MAX,
        }
    }

    fn control(&mut self, id: u16, vcpu: usize, mut fields: Fields<'_>) -> Done {
        let first = fields.number(4)?;
        let second = fields.number(4)?;
        fields.end()?;
        let Some(state) = self.state.vcpus.get_mut(vcpu) else { return fail(error::INVAL) };
        let (before, armed) = (state.armed.clone(), &mut state.armed);
        let on = first & 1 == 1;
        match id {
            id::CONTROL_EVENTS => {
                let (event, on) = (first as u16, first >> 16 & 1 == 1);
                let Some(event) = EVENTS.iter().find(|is| u16::from(**is) == event) else {
                    return fail(error::INVAL);
                };
                armed.events = armed.events & !(1 << event) | u32::from(on) << event;
            }
            id::CONTROL_CR if [0, 3, 4].contains(&second) => {
                armed.crs = armed.crs & !(1 << second) | u32::from(on) << second;
            }
            id::CONTROL_MSR if second < 0x2000 || (0xc000_0000..0xc000_2000).contains(&second) => {
                if on {
                    armed.msrs.insert(second as u32);
                } else {
                    armed.msrs.remove(&(second as u32));
                }
            }
            id::CONTROL_SINGLESTEP => {
                armed.step = on;
                state.put_off.was_step();
            }
            _ => return fail(error::INVAL),
        }
        if self.state.arm(self.driver).is_err() {
            if let Some(state) = self.state.vcpus.get_mut(vcpu) {
                state.armed = before;
            }
            return fail(error::INVAL);
        }
        ok([])
    }
}

fn check(mut fields: Fields<'_>, known: impl Fn(u16) -> bool) -> Done {
    let id = fields.number(8)?;
    fields.end()?;
    match u16::try_from(id) {
        Ok(id) if known(id) => ok([]),
        Ok(_) => fail(error::NOENT),
        Err(_) => fail(error::INVAL),
    }
}
