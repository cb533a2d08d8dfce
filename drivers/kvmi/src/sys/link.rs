//! A connection: crate kvmi, and libkvmi's own handles for what it lacks.

use std::collections::HashMap;
use std::io;
use std::mem::ManuallyDrop;
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use kvmi::{KVMIntrospectable, KVMi, KVMiCr, KVMiInterceptType, KVMiPageAccess};
use vmtree_api::PAGE_SIZE;

use super::call::{Handles, refusal};
use super::event::Event;
use super::wake::Doorbell;
use super::{copy, event};
use crate::port::{
    Answer, Control, Epts, Events, General, Guest, Line, Raw, Refusal, Reply, Told, Vcpus, errno, kind,
};

/// Commands whose presence is asked for, by number.
const SWITCH_EPT_VIEW: i32 = 32;
const CREATE_EPT_VIEW: i32 = 43;
const CONTROL_SINGLESTEP: i32 = 63;
/// Pages of one message: all of it is below 8 KiB.
const PAGES: usize = 256;

/// It. Not sent between threads: libkvmi's handles are pointers.
pub struct Link {
    kvmi: ManuallyDrop<KVMi>,
    handles: Handles,
    guest: UnixStream,
    bell: Arc<Doorbell>,
    /// The events that were not answered yet, by number.
    events: HashMap<u32, Event>,
}

impl Link {
    /// Of handles whose descriptor is that of `guest`.
    pub fn new(kvmi: ManuallyDrop<KVMi>, handles: Handles, guest: UnixStream, bell: Arc<Doorbell>) -> Self {
        Self { kvmi, handles, guest, bell, events: HashMap::new() }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.events.clear();
        self.handles.close();
    }
}

fn done(result: io::Result<()>) -> Answer<()> {
    result.map_err(|error| refusal(&error))
}

fn named(number: u8) -> Option<KVMiInterceptType> {
    Some(match number {
        kind::CR => KVMiInterceptType::Cr,
        kind::MSR => KVMiInterceptType::Msr,
        kind::BREAKPOINT => KVMiInterceptType::Breakpoint,
        kind::PF => KVMiInterceptType::Pagefault,
        _ => return None,
    })
}

impl Guest for Link {
    fn vcpus(&mut self) -> Answer<u32> {
        self.kvmi.get_vcpu_count().map_err(|error| refusal(&error))
    }

    fn max_gfn(&mut self) -> Answer<u64> {
        self.handles.max_gfn()
    }

    fn read(&mut self, gpa: u64, buf: &mut [u8]) -> Answer<()> {
        done(self.kvmi.read_physical(gpa, buf))
    }

    fn write(&mut self, gpa: u64, data: &[u8]) -> Answer<()> {
        done(self.kvmi.write_physical(gpa, data))
    }

    fn access(&mut self, view: u16, gfns: Range<u64>, rights: u8) -> Answer<()> {
        let invalid = Refusal::Errno(errno::EINVAL);
        let named = KVMiPageAccess::try_from(rights).map_err(|_| invalid.clone())?;
        if gfns.end > u64::MAX / PAGE_SIZE {
            return Err(invalid);
        }
        if gfns.end - gfns.start == 1 {
            return done(self.kvmi.set_page_access(gfns.start * PAGE_SIZE, named, view));
        }
        let mut start = gfns.start;
        while start < gfns.end {
            let end = gfns.end.min(start + PAGES as u64);
            let mut gpas: Vec<u64> = (start..end).map(|gfn| gfn * PAGE_SIZE).collect();
            let mut all = vec![rights; gpas.len()];
            self.handles.access(&mut gpas, &mut all, view)?;
            start = end;
        }
        Ok(())
    }

    fn translate(&mut self, vcpu: u16, gva: u64) -> Answer<u64> {
        self.handles.translate(vcpu, gva)
    }
}

impl Vcpus for Link {
    fn registers(&mut self, vcpu: u16, msrs: &[u32]) -> Answer<Raw> {
        copy::registers(&self.handles, vcpu, msrs)
    }

    fn xcr0(&mut self, vcpu: u16) -> Answer<u64> {
        self.handles.xcr0(vcpu)
    }

    fn set_general(&mut self, vcpu: u16, general: &General) -> Answer<()> {
        done(self.kvmi.set_registers(vcpu, &copy::regs(general)))
    }

    fn pause_all(&mut self) -> Answer<()> {
        done(self.kvmi.pause())
    }

    fn pause(&mut self, vcpu: u16) -> Answer<()> {
        self.handles.pause(vcpu)
    }

    fn inject(&mut self, vcpu: u16, vector: u8, error: u32, address: u64) -> Answer<()> {
        self.handles.inject(vcpu, vector, error, address)
    }
}

impl Events for Link {
    fn has_event(&mut self, kind: u8) -> Answer<()> {
        self.handles.check_event(kind)
    }

    fn has_step(&mut self) -> Answer<()> {
        self.handles.check_command(CONTROL_SINGLESTEP)?;
        self.handles.check_event(kind::SINGLESTEP)
    }

    fn control(&mut self, vcpu: u16, what: Control, on: bool) -> Answer<()> {
        match what {
            Control::Event(number) => match named(number) {
                Some(named) => done(self.kvmi.control_events(vcpu, named, on)),
                None => self.handles.control_events(vcpu, number, on),
            },
            Control::Cr(number) => {
                let cr = match number {
                    0 => KVMiCr::Cr0,
                    3 => KVMiCr::Cr3,
                    4 => KVMiCr::Cr4,
                    _ => return Err(Refusal::Errno(errno::EINVAL)),
                };
                done(self.kvmi.control_cr(vcpu, cr, on))
            }
            Control::Msr(index) => done(self.kvmi.control_msr(vcpu, index, on)),
            Control::Step => self.handles.control_step(vcpu, on),
        }
    }

    fn tell_unhook(&mut self) -> Answer<()> {
        self.handles.control_vm_events(kind::UNHOOK, true)
    }

    fn next(&mut self) -> Answer<Option<Told>> {
        let Some((told, event)) = event::next(&self.handles)? else { return Ok(None) };
        self.events.insert(told.seq, event);
        Ok(Some(told))
    }

    fn reply(&mut self, told: &Told, reply: Reply) -> Answer<()> {
        match self.events.remove(&told.seq) {
            Some(event) => event::reply(&*self.kvmi, &self.handles, told, event, reply),
            // Two events of one number: whoever sent them can't tell the answers apart.
            None => {
                Err(Refusal::Gone(format!("the hypervisor sent two events with the number {}", told.seq)))
            }
        }
    }
}

impl Epts for Link {
    fn has_views(&mut self) -> Answer<()> {
        self.handles.check_command(SWITCH_EPT_VIEW)?;
        self.handles.check_command(CREATE_EPT_VIEW)
    }

    fn create(&mut self) -> Answer<u16> {
        self.handles.create_view()
    }

    fn destroy(&mut self, view: u16) -> Answer<()> {
        self.handles.destroy_view(view)
    }

    fn switch(&mut self, vcpu: u16, view: u16) -> Answer<()> {
        self.handles.switch_view(vcpu, view)
    }

    fn change(&mut self, view: u16, gfn: u64, to: u64) -> Answer<()> {
        self.handles.change_gfn(view, gfn, to)
    }

    fn alloc(&mut self, gfn: u64) -> Answer<()> {
        self.handles.alloc_gfn(gfn)
    }

    fn free(&mut self, gfn: u64) -> Answer<()> {
        self.handles.free_gfn(gfn)
    }
}

impl Line for Link {
    fn wait(&mut self, timeout: Duration) {
        self.bell.sleep(self.guest.as_fd(), timeout);
    }

    fn close(&mut self) {
        // One that is closed already is as good.
        let _ = self.guest.shutdown(Shutdown::Both);
    }
}
