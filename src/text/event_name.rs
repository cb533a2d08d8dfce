//! Names below `events/`: `KIND[,param=value...]`.

use vmtree_api::events::{EventKind, Way};
use vmtree_api::{Access, Gpa, Result, VcpuId};

use super::map::parse_range;
use super::{invalid, name, number_of, quoted};
use crate::events::filter::{Filter, Format};

const OP: &str = "read event name";

/// The file of every kind.
pub const ALL: &str = "all";

/// Reads a name below `events/` of a VM with `vcpus` vCPUs; `None` for a name without parameters that is no kind's,
/// nor `all`.
///
/// # Errors
/// [`vmtree_api::ErrorKind::Invalid`] for parameters of no kind, one that the kind doesn't have or that stands twice, or for a bad value;
/// `OutOfRange` for a number too large; `NotFound` for a vCPU that is not there.
pub fn parse(name: &str, vcpus: u32) -> Result<Option<(Filter, Format)>> {
    let base = name.split(',').next().unwrap_or_default();
    let kind = EventKind::ALL.iter().copied().find(|kind| kind.name() == base);
    if kind.is_none() && base != ALL {
        // Shells look for plain names that mean nothing all the time; one with parameters is somebody's mistake.
        return match name.contains(',') {
            false => Ok(None),
            true => Err(invalid(OP, format!("there is no kind {}: ls events shows them", quoted(base)))),
        };
    }
    let mut filter = Filter { kind, ..Filter::default() };
    let mut format = Format::default();
    for (key, value) in name::split(name)?.pairs {
        if !params(kind).contains(&key.as_str()) {
            let why = format!("{base} has no parameter {}: it has {}", quoted(&key), params(kind).join(", "));
            return Err(invalid(OP, why));
        }
        match key.as_str() {
            "format" => format = format_of(&value)?,
            "vcpu" => filter.vcpu = Some(vcpu_of(&value, vcpus)?),
            "dir" => filter.way = Some(way_of(base, kind, &value)?),
            "gpa" => filter.gpa = Some(gpa_of(&value)?),
            "access" => filter.access = Some(access_of(&value)?),
            _ => filter.index = Some(index_of(&key, kind, &value)?),
        }
    }
    Ok(Some((filter, format)))
}

/// The parameters of a kind, in the order in which they are printed; `None` is `all`.
fn params(kind: Option<EventKind>) -> &'static [&'static str] {
    match kind {
        Some(EventKind::Msr | EventKind::Dr) => &["dir", "format", "index", "vcpu"],
        Some(EventKind::Slat) => &["access", "format", "gpa", "vcpu"],
        Some(EventKind::Interrupt) => &["format", "vcpu", "vector"],
        Some(kind) if kind.ways().contains(&Way::To) => &["dir", "format", "vcpu"],
        _ => &["format", "vcpu"],
    }
}

fn format_of(value: &str) -> Result<Format> {
    match value {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        "binary" => Ok(Format::Binary),
        _ => Err(invalid(OP, format!("format: {} is none: write text, json or binary", quoted(value)))),
    }
}

fn vcpu_of(value: &str, vcpus: u32) -> Result<VcpuId> {
    match number_of(OP, "vcpu", value, 32)? as u32 {
        vcpu if vcpu < vcpus => Ok(VcpuId(vcpu)),
        _ => {
            let why = format!("vcpu: {} is not there: this VM has {vcpus}, counted from 0", quoted(value));
            Err(vmtree_api::Error::new(vmtree_api::ErrorKind::NotFound, OP, why))
        }
    }
}

fn way_of(base: &str, kind: Option<EventKind>, value: &str) -> Result<Way> {
    let way = match value {
        "to" => Way::To,
        "from" => Way::From,
        _ => return Err(invalid(OP, format!("dir: {} is none: write to or from", quoted(value)))),
    };
    match kind.is_some_and(|kind| kind.ways().contains(&way)) {
        true => Ok(way),
        // Today that is xcr0 alone: XGETBV has no intercept.
        false => Err(invalid(OP, format!("dir: {base} has no '{value}': leave dir= out"))),
    }
}

fn gpa_of(value: &str) -> Result<std::ops::Range<Gpa>> {
    let range = parse_range(value)?;
    Ok(Gpa(range.start)..Gpa(range.end))
}

/// Letters of rwx in any order, each at most once.
fn access_of(value: &str) -> Result<Access> {
    let mut access = Access::NONE;
    for char in value.chars() {
        let right = match char {
            'r' => Access::READ,
            'w' => Access::WRITE,
            'x' => Access::EXECUTE,
            _ => Access::NONE,
        };
        if right == Access::NONE || access.contains(right) {
            return Err(invalid(
                OP,
                format!("access: {} is none: write letters of rwx, as w or rw", quoted(value)),
            ));
        }
        access = access.union(right);
    }
    Ok(access)
}

/// `index=` of msr and dr, `vector=` of interrupt.
fn index_of(key: &str, kind: Option<EventKind>, value: &str) -> Result<u32> {
    let bits = match kind {
        Some(EventKind::Dr) => 3,
        Some(EventKind::Interrupt) => 8,
        _ => 32,
    };
    Ok(number_of(OP, key, value, bits)? as u32)
}

/// The canonical name of a file below `events/`: keys sorted, defaults left out. [`parse`] reads it back.
#[must_use]
pub fn print(filter: &Filter, format: Format) -> String {
    let mut name = filter.kind.map_or(ALL, EventKind::name).to_owned();
    for key in params(filter.kind) {
        let value = match *key {
            "access" => filter.access.map(letters),
            "dir" => filter.way.map(|way| way.name().to_owned()),
            "format" => format_name(format).map(str::to_owned),
            "gpa" => filter.gpa.as_ref().map(|gpa| format!("{}-{}", gpa.start, gpa.end)),
            "vcpu" => filter.vcpu.map(|vcpu| vcpu.to_string()),
            "index" if filter.kind == Some(EventKind::Msr) => filter.index.map(|index| format!("{index:#x}")),
            _ => filter.index.map(|index| index.to_string()),
        };
        if let Some(value) = value {
            name += &format!(",{key}={value}");
        }
    }
    name
}

/// The rights as letters alone, as in `access=rw`.
fn letters(access: Access) -> String {
    access.to_string().replace('-', "")
}

/// `None` for the default.
fn format_name(format: Format) -> Option<&'static str> {
    match format {
        Format::Text => None,
        Format::Json => Some("json"),
        Format::Binary => Some("binary"),
    }
}

#[cfg(test)]
#[path = "event_name_tests.rs"]
pub(crate) mod tests;
