//! This host's Xen: its domains, and what is needed to reach them.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use vmtree_api::{Check, Driver, Error, ErrorKind, Host, Listed, Missing, Result, Source};

use crate::driver::{BUDGET, Opening, open_domain};
use crate::error::refused;
use crate::hypervisor::DomainInfo;
use crate::pv::Pv;
use crate::source::Target;
use crate::sys;
use crate::sys::store::Store;

const OP: &str = "open xen";

/// All domains that are not being destroyed.
fn domains() -> Result<Vec<DomainInfo>> {
    let mut domains = sys::domains().map_err(|error| refused(OP, unreached(), error))?;
    domains.retain(|info| !info.dying);
    Ok(domains)
}

/// Their numbers and names.
fn names(domains: &[DomainInfo]) -> Vec<(u32, Option<String>)> {
    let store = Store::open().ok();
    let name = |info: &DomainInfo| store.as_ref().and_then(|store| store.name(info.domid));
    domains.iter().map(|info| (info.domid, name(info))).collect()
}

/// What the domain has beside others if it is PV.
fn paravirtual(info: &DomainInfo) -> Result<Option<Pv>> {
    if info.hvm {
        return Ok(None);
    }
    let m2p = sys::m2p()
        .map_err(|error| refused(OP, "Xen does not show its table of the machine's frames", error))?;
    Ok(Some(Pv { shared_info: info.shared_info, m2p }))
}

fn unreached() -> &'static str {
    "Xen can't be reached from here: run vmtree as root in dom0 ('vmtree doctor' tells what is missing)"
}

/// Opens the domain that `source` names: `xen:NAME` or `xen:domid=3`, with `mapped=SIZE`, how much of its memory is kept
/// mapped at most, and `ring=take`, for a domain whose event ring a dead process has.
///
/// # Errors
/// [`vmtree_api::ErrorKind::Invalid`] for a target or option that makes no sense, `NotFound` if there is no such domain, and
/// those of [`open_domain`].
pub fn open(mut source: Source, host: Arc<dyn Host>) -> Result<Box<dyn Driver>> {
    let target = Target::parse(&source.target)?;
    let budget = source.take_size("mapped", BUDGET)?;
    let take_ring = match source.take("ring").as_deref() {
        None => false,
        Some("take") => true,
        Some(other) => {
            let why = format!(
                "ring={other}: there is ring=take only, which takes the domain's event ring from whoever has it"
            );
            return Err(Error::new(ErrorKind::Invalid, "read SOURCE", why));
        }
    };
    source.finish(&["mapped", "ring"])?;
    let domains = domains()?;
    let names = names(&domains);
    let domid = target.pick(&names)?;
    let info = domains.iter().find(|info| info.domid == domid);
    let pv = info.map_or(Ok(None), paravirtual)?;
    let name = names.into_iter().find(|(number, _)| *number == domid).and_then(|(_, name)| name);
    let frames = if pv.is_some() { sys::machine_frames(domid) } else { sys::frames(domid) };
    let frames = frames.map_err(|error| refused(OP, unreached(), error))?;
    let version = sys::version().ok();
    let open = Box::new(move || sys::open(domid));
    open_domain(Opening { domid, name, version, budget, take_ring, frames, pv, open }, host)
}

/// The domains of this host but dom0, as far as Xen tells.
#[must_use]
pub fn list() -> Vec<Listed> {
    let Ok(domains) = sys::domains() else { return Vec::new() };
    let store = Store::open().ok();
    domains
        .iter()
        .filter(|info| info.domid != 0 && !info.dying)
        .map(|info| listed(info, store.as_ref().and_then(|store| store.name(info.domid)).as_deref()))
        .collect()
}

fn listed(info: &DomainInfo, name: Option<&str>) -> Listed {
    let domid = info.domid;
    // In a SOURCE, a comma ends the name.
    let source = match name.filter(|name| !name.contains(',') && !name.is_empty()) {
        Some(name) => format!("xen:{name}"),
        None => format!("xen:domid={domid}"),
    };
    let kind = match (info.hvm, info.devices & !1) {
        (false, _) => "PV",
        (true, 0) => "PVH",
        (true, _) => "HVM",
    };
    let state = match (info.shutdown, info.paused) {
        (true, _) => "shut down",
        (false, true) => "paused",
        (false, false) => "running",
    };
    let mib = info.pages >> 8;
    let about = format!("domain {domid}, {kind}, {} vCPUs, {mib} MiB, {state}", info.vcpus);
    Listed { source, about }
}

/// What this driver needs of the host.
#[must_use]
pub fn checks() -> Vec<Check> {
    let check = |what: &str, found| Check { what: what.to_owned(), found };
    vec![
        check("Xen", dom0()),
        check("Xen's hypercalls (/dev/xen/privcmd)", privcmd()),
        check("names of domains (xenstore)", store()),
        check(
            "FUSE in dom0 (/dev/fuse)",
            device(Path::new("/dev/fuse"), "load the kernel module: modprobe fuse"),
        ),
    ]
}

fn dom0() -> std::result::Result<String, Missing> {
    let missing = |why: &str| Missing::new(why).cure("boot this machine by Xen, and run vmtree in dom0");
    let capabilities = fs::read_to_string("/proc/xen/capabilities");
    match capabilities.as_deref().map(str::trim) {
        Ok(text) if text.contains("control_d") => Ok("this is dom0".to_owned()),
        Ok(_) => Err(missing("this is a guest of Xen, not dom0")),
        Err(_) if Path::new("/sys/hypervisor/type").exists() => Ok("this host runs on Xen".to_owned()),
        Err(_) => Err(missing("this host does not run on Xen")),
    }
}

fn privcmd() -> std::result::Result<String, Missing> {
    device(Path::new("/dev/xen/privcmd"), "load the kernel module: modprobe xen-privcmd")?;
    match (sys::version(), sys::domains()) {
        (Ok(version), Ok(domains)) => {
            let guests = domains.iter().filter(|info| info.domid != 0).count();
            Ok(format!("Xen {version}, {guests} guests"))
        }
        (Ok(version), Err(error)) => Err(Missing::new(format!("Xen {version} does not tell of its domains ({error})"))
            .cure("run vmtree as root in dom0, with the libxenctrl of the Xen that runs: it is for one version only")),
        (Err(error), _) => Err(reach(&error)),
    }
}

fn reach(error: &io::Error) -> Missing {
    Missing::new(format!("Xen can't be asked ({error})")).cure("run vmtree as root in dom0")
}

fn store() -> std::result::Result<String, Missing> {
    match Store::open() {
        Ok(store) => {
            Ok(store.name(0).map_or_else(|| "answers".to_owned(), |name| format!("dom0 is '{name}'")))
        }
        Err(error) => {
            Err(Missing::new(format!("xenstored can't be reached ({error}); domains have numbers only"))
                .cure("start xenstored, and run vmtree as root"))
        }
    }
}

fn device(path: &Path, cure: &str) -> std::result::Result<String, Missing> {
    if path.exists() {
        return Ok("there".to_owned());
    }
    Err(Missing::new(format!("{} is not there", path.display())).cure(cure))
}

/// Undoes what the driver of a daemon that was killed noted of a domain.
///
/// # Errors
/// The domain is there and could not be told.
pub fn recover(_source: &str, note: &str) -> Result<()> {
    // By its number: its name may be another domain's by now.
    let Some(domid) = crate::recover::domid(note) else { return Ok(()) };
    let mut xen = sys::open(domid).map_err(|error| refused("recover", unreached(), error))?;
    crate::recover::undo(&mut *xen, note)
}
