//! Guest memory of real QEMUs, compared to what QEMU itself shows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../../../tests/labs/qemu/lab.rs"]
mod lab;

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::Vm;
use vmtree_api::{Driver, ErrorKind, Gpa, Memory, NoHost, RegionKind, Source, Span};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn open(vm: &Vm) -> Box<dyn Driver> {
    vmtree_qemu::open(Source::new("qemu", &vm.qmp(), Vec::new()), Arc::new(NoHost)).unwrap()
}

/// A VM whose firmware is done: it has locked its shadow at 0xf0000 and leaves the layout alone from then on.
fn booted(args: &[&str]) -> Vm {
    let mut vm = Vm::start(args);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !vm.human("info mtree -f").contains("00000000000f0000-00000000000fffff (prio 0, rom)") {
        assert!(Instant::now() < deadline, "the firmware is not done: {}", vm.human("info registers"));
        sleep(Duration::from_millis(50));
    }
    sleep(Duration::from_millis(300));
    vm
}

fn bytes(memory: &dyn Memory, gpa: u64, count: usize) -> Vec<u8> {
    let mut buf = vec![0xa5; count];
    assert_eq!(memory.read(Gpa(gpa), &mut buf).unwrap(), count, "at {gpa:#x}");
    buf
}

fn pattern(seed: u8) -> Vec<u8> {
    (0..65536_u32).map(|index| (index.wrapping_mul(167) >> 3) as u8 ^ seed).collect()
}

fn kind_at(memory: &dyn Memory, gpa: u64) -> Option<RegionKind> {
    match memory.map().at(Gpa(gpa)) {
        Span::Region(region) => Some(region.kind),
        Span::Hole(_) => None,
    }
}

/// A machine of 2 GiB, of which 1 GiB lies above the hole if `split`, with patterns loaded into its RAM.
fn machine(folder: &Path, backend: &str, split: bool, accelerator: &str) -> (Vm, Vec<u64>) {
    let mut places = vec![16 * MIB, GIB - MIB];
    places.push(if split { 4 * GIB + 16 * MIB } else { 2 * GIB - 16 * MIB });
    let mut args = ["-m", "2G", "-accel", accelerator].map(str::to_owned).to_vec();
    for (seed, place) in places.iter().enumerate() {
        let file = folder.join(format!("pattern{seed}"));
        std::fs::write(&file, pattern(seed as u8)).unwrap();
        let loader = format!("loader,file={},addr={place:#x},force-raw=on", file.display());
        args.extend(["-device".to_owned(), loader]);
    }
    let mut machine = "pc".to_owned();
    if split {
        machine.push_str(",max-ram-below-4g=1G");
    }
    let object = match backend {
        "memfd" => Some("memory-backend-memfd,id=ram0,size=2G,share=on"),
        "file" => Some("memory-backend-file,id=ram0,size=2G,share=on,mem-path=ram"),
        _ => None,
    };
    if let Some(object) = object {
        machine.push_str(",memory-backend=ram0");
        args.extend(["-object".to_owned(), object.to_owned()]);
    }
    args.extend(["-machine".to_owned(), machine]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    (booted(&args), places)
}

#[test]
fn bytes_are_those_of_qemu_for_each_backend_and_on_both_sides_of_the_hole() {
    if !lab::have_qemu() {
        return;
    }
    for backend in ["memfd", "file", "plain"] {
        for split in [false, true] {
            println!("{backend}, split {split}");
            check_machine(backend, split, "tcg");
        }
    }
}

#[test]
fn kvm_guests_are_read_as_tcg_ones() {
    if lab::have_qemu() && lab::have_kvm() {
        check_machine("memfd", true, "kvm");
        check_machine("plain", true, "kvm");
    }
}

fn check_machine(backend: &str, split: bool, accelerator: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (mut vm, places) = machine(folder.path(), backend, split, accelerator);
    let driver = open(&vm);
    let memory = driver.memory();
    check_map(memory, split);
    for (seed, place) in places.iter().enumerate() {
        let read = bytes(memory, *place, 65536);
        assert!(read == pattern(seed as u8) && read == vm.pmemsave(*place, 65536), "at {place:#x}");
        // Neither the address nor the length is a multiple of anything.
        assert_eq!(memory.write(Gpa(place + 4093), b"written by vmtree").unwrap(), 17);
        assert_eq!(vm.pmemsave(place + 4093, 17), b"written by vmtree");
        assert_eq!(vm.pmemsave(place + 4092, 1), [read[4092]]);
        assert_eq!(vm.pmemsave(place + 4110, 1), [read[4110]]);
    }
    for rom in [0xf_0000, 0xffff_0000] {
        assert_eq!(bytes(memory, rom, 0x1000), vm.pmemsave(rom, 0x1000), "at {rom:#x}");
    }
    check_blocks(memory, backend, &places);
    check_edges(memory);
    assert_eq!(driver.facts().vcpus, Some(1));
    assert!(driver.facts().extra.contains(&("accelerator", accelerator.to_owned())));
    let memory_way = &driver.facts().extra.iter().find(|(key, _)| *key == "memory").unwrap().1;
    let expected = match backend {
        "memfd" => "ram0 shared memfd",
        "file" => "ram0 shared file",
        _ => "pc.ram process_vm_readv",
    };
    assert_eq!(memory_way, expected);
}

fn check_map(memory: &dyn Memory, split: bool) {
    let map = memory.map();
    assert_eq!(map.generation(), 1);
    assert_eq!(map.ram_end(), if split { 5 * GIB } else { 2 * GIB });
    assert_eq!(kind_at(memory, 0), Some(RegionKind::Ram));
    assert_eq!(kind_at(memory, 0xf_0000), Some(RegionKind::Rom));
    assert_eq!(kind_at(memory, 0xffff_fff0), Some(RegionKind::Rom), "reset vector");
    assert_eq!(kind_at(memory, 0xfec0_0000), Some(RegionKind::Mmio), "I/O APIC");
    assert_eq!(kind_at(memory, 3 * GIB), None);
    assert_eq!(kind_at(memory, GIB), if split { None } else { Some(RegionKind::Ram) });
    // What is shown as ROM below 1 MiB is a part of RAM that the firmware locked.
    let rom_below_1m: u64 = map
        .regions()
        .iter()
        .filter(|region| region.end.0 <= MIB && region.kind == RegionKind::Rom)
        .map(|region| region.bytes())
        .sum();
    assert_eq!(map.ram_bytes() + rom_below_1m, 2 * GIB);
}

fn check_blocks(memory: &dyn Memory, backend: &str, places: &[u64]) {
    let blocks = memory.blocks();
    let map = memory.map();
    if backend == "plain" {
        assert!(blocks.is_empty() && map.regions().iter().all(|region| region.block.is_none()));
        assert!(!memory.lend(Gpa(places[0]), 4096, &mut |_| panic!("lent")).unwrap());
        return;
    }
    assert_eq!(
        blocks.iter().map(|block| (&*block.name, block.bytes)).collect::<Vec<_>>(),
        [("ram0", 2 * GIB)]
    );
    for place in places.iter().copied().chain([0xf_0000]) {
        let Span::Region(region) = map.at(Gpa(place)) else { panic!("a hole at {place:#x}") };
        let at = region.block.as_ref().unwrap();
        let mut buf = vec![0; 4096];
        blocks[0].file.read_exact_at(&mut buf, at.offset + (place - region.start.0)).unwrap();
        assert_eq!(buf, bytes(memory, place, 4096), "at {place:#x}");
        let mut lent = Vec::new();
        assert!(memory.lend(Gpa(place), 4096, &mut |bytes| lent.extend_from_slice(bytes)).unwrap());
        assert_eq!(buf, lent, "at {place:#x}");
    }
}

/// What is no whole piece of memory is refused and changes nothing.
fn check_edges(memory: &dyn Memory) {
    let end = memory.map().ram_end();
    let mut buf = [0; 16];
    for gpa in [end - 8, end, 0xfec0_0000, 3 * GIB, u64::MAX - 7, i64::MAX as u64] {
        assert_eq!(memory.read(Gpa(gpa), &mut buf).unwrap_err().kind(), ErrorKind::NotFound, "{gpa:#x}");
        assert_eq!(memory.write(Gpa(gpa), &buf).unwrap_err().kind(), ErrorKind::NotFound, "{gpa:#x}");
        assert_eq!(
            memory.lend(Gpa(gpa), 16, &mut |_| panic!("lent")).unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }
    assert_eq!(memory.read(Gpa(end - 16), &mut buf).unwrap(), 16);
    assert_eq!(memory.read(Gpa(0), &mut []).unwrap(), 0);
    assert_eq!(memory.write(Gpa(0), &[]).unwrap(), 0);
}

#[test]
fn each_numa_node_has_its_own_backend() {
    if !lab::have_qemu() {
        return;
    }
    let mut vm = booted(&[
        "-m",
        "1G",
        "-smp",
        "2",
        "-name",
        "guest=two,debug-threads=on", //
        "-object",
        "memory-backend-memfd,id=node0,size=512M,share=on,x-use-canonical-path-for-ramblock-id=on",
        "-numa",
        "node,memdev=node0", //
        "-object",
        "memory-backend-ram,id=node1,size=512M",
        "-numa",
        "node,memdev=node1",
    ]);
    let driver = open(&vm);
    let memory = driver.memory();
    assert_eq!((driver.facts().name.as_deref(), driver.facts().vcpus), (Some("two"), Some(2)));
    let blocks: Vec<String> = memory.blocks().iter().map(|block| block.name.to_string()).collect();
    assert_eq!(blocks, ["node0"]);
    for (gpa, word) in [(511 * MIB, 0x1111_2222_3333_4444_u64), (513 * MIB, 0x5555_6666_7777_8888)] {
        memory.write(Gpa(gpa), &word.to_le_bytes()).unwrap();
        assert_eq!(vm.xp(gpa), word);
        assert_eq!(bytes(memory, gpa, 8), word.to_le_bytes());
    }
    let way = &driver.facts().extra.iter().find(|(key, _)| *key == "memory").unwrap().1;
    assert_eq!(way, "node0 shared memfd, node1 process_vm_readv");
}

#[test]
fn the_ram_of_devices_is_no_guest_ram_and_a_dimm_is() {
    if !lab::have_qemu() {
        return;
    }
    let mut vm = booted(&[
        "-machine",
        "q35",
        "-vga",
        "std",
        "-m",
        "512M,slots=2,maxmem=4G", //
        "-object",
        "memory-backend-file,id=iv,size=16M,share=on,mem-path=iv",
        "-device",
        "ivshmem-plain,memdev=iv", //
        "-object",
        "memory-backend-memfd,id=stick,size=256M,share=on",
        "-device",
        "pc-dimm,memdev=stick",
    ]);
    let driver = open(&vm);
    let memory = driver.memory();
    let map = memory.map();
    assert_eq!(map.ram_end(), 4 * GIB + 256 * MIB, "{map:?}");
    assert!(map.ram_bytes() <= 768 * MIB, "{map:?}");
    let tree = vm.human("info mtree -f");
    for device in ["vga.vram", "iv"] {
        let line = tree
            .lines()
            .find(|line| line.ends_with(&format!("ram): {device}")))
            .unwrap_or_else(|| panic!("{device}: {tree}"));
        let start = u64::from_str_radix(line.trim().split('-').next().unwrap(), 16).unwrap();
        assert_eq!(kind_at(memory, start), Some(RegionKind::Mmio), "{line}");
    }
    memory.write(Gpa(4 * GIB), b"a DIMM's").unwrap();
    assert_eq!(vm.xp(4 * GIB), u64::from_le_bytes(*b"a DIMM's"));
    assert_eq!(memory.blocks().iter().map(|block| &*block.name).collect::<Vec<_>>(), ["stick"]);
}

#[test]
fn flash_that_reads_as_memory_is_rom() {
    if !lab::have_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("flash");
    // The reset vector is its end; code of one jump to itself is enough of a firmware.
    let mut flash = pattern(7);
    let end = flash.len();
    flash[end - 16..end - 14].copy_from_slice(&[0xeb, 0xfe]);
    std::fs::write(&image, &flash).unwrap();
    let drive = format!("if=pflash,format=raw,file={}", image.display());
    let vm = Vm::start(&["-machine", "q35", "-m", "64M", "-drive", &drive]);
    let driver = open(&vm);
    let start = 4 * GIB - flash.len() as u64;
    assert_eq!(kind_at(driver.memory(), start), Some(RegionKind::Rom));
    assert_eq!(bytes(driver.memory(), start, flash.len()), flash);
}

#[test]
fn a_file_that_is_cut_short_is_an_error_and_no_signal() {
    if !lab::have_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (vm, places) = machine(folder.path(), "file", true, "tcg");
    let driver = open(&vm);
    let memory = driver.memory();
    let file = std::fs::File::options().write(true).open(vm.folder().join("ram")).unwrap();
    // The guest uses nothing of what lies above the hole.
    file.set_len(GIB).unwrap();
    assert_eq!(memory.read(Gpa(places[2]), &mut [0; 16]).unwrap_err().kind(), ErrorKind::Io);
    let mut sink = tempfile::tempfile().unwrap();
    let mut sent = None;
    assert!(memory.lend(Gpa(places[2]), 16, &mut |bytes| sent = Some(sink.write(bytes))).unwrap());
    // EFAULT
    assert_eq!(sent.unwrap().unwrap_err().raw_os_error(), Some(14));
    assert_eq!(bytes(memory, places[0], 65536), pattern(0));
}

#[test]
fn memory_devices_of_each_kind_are_ram() {
    if !lab::have_qemu() {
        return;
    }
    let devices = [
        ("memory-backend-memfd,id=nv,size=128M,share=on", "nvdimm,memdev=nv,label-size=128K"),
        ("memory-backend-memfd,id=pm,size=128M,share=on", "virtio-pmem-pci,memdev=pm"),
        (
            "memory-backend-memfd,id=vm,size=256M,share=on,reserve=off",
            "virtio-mem-pci,memdev=vm,requested-size=128M",
        ),
    ];
    let mut args = vec!["-machine", "q35,nvdimm=on", "-m", "512M,slots=4,maxmem=8G"];
    for (object, device) in devices {
        args.extend(["-object", object, "-device", device]);
    }
    let mut vm = booted(&args);
    let driver = open(&vm);
    let memory = driver.memory();
    assert_eq!(memory.blocks().iter().map(|block| &*block.name).collect::<Vec<_>>(), ["nv", "pm", "vm"]);
    for block in ["nv", "pm", "vm"] {
        let map = memory.map();
        let of = |region: &&vmtree_api::Region| region.block.as_ref().is_some_and(|at| &*at.name == block);
        let region = map.regions().iter().find(of).unwrap_or_else(|| panic!("{block}: {map:?}"));
        assert_eq!(region.kind, RegionKind::Ram, "{block}");
        memory.write(region.start, b"plugged!").unwrap();
        assert_eq!(vm.xp(region.start.0), u64::from_le_bytes(*b"plugged!"), "{block}");
    }
}
