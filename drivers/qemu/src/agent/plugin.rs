//! The plugin of this installation, and the lines that load it.

use std::env;
use std::path::{Path, PathBuf};

/// The file name of the plugin.
const FILE: &str = "libvmtree_qemu.so";

/// The plugin of this installation, and the lines that load it.
pub struct Plugin {
    file: PathBuf,
    socket: PathBuf,
}

impl Plugin {
    /// The plugin beside our own program, or in `lib/vmtree` beside its folder; else the file's bare name, for the user to
    /// complete. `name` is the VM's, for the socket's.
    #[must_use]
    pub fn for_vm(name: Option<&str>) -> Self {
        let own = env::current_exe().ok().and_then(|path| Some(path.parent()?.to_owned()));
        let places =
            own.iter().flat_map(|folder| [folder.join(FILE), folder.join("../lib/vmtree").join(FILE)]);
        let found =
            places.into_iter().find_map(|path| path.is_file().then(|| path.canonicalize().unwrap_or(path)));
        let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name: String = name.unwrap_or("vm").chars().filter(plain).take(40).collect();
        let name = if name.is_empty() { "vm".to_owned() } else { name };
        Self { file: found.unwrap_or_else(|| FILE.into()), socket: format!("/run/vmtree-{name}.sock").into() }
    }

    /// Whether the file was found.
    #[must_use]
    pub fn is_found(&self) -> bool {
        self.file.is_absolute()
    }

    /// The value of `-plugin`. In it a comma is written twice.
    #[must_use]
    pub fn value(&self) -> String {
        let twice = |path: &Path| path.to_string_lossy().replace(',', ",,");
        format!("{},socket={}", twice(&self.file), twice(&self.socket))
    }

    /// The flag for QEMU's command line.
    #[must_use]
    pub fn flag(&self) -> String {
        let value = self.value();
        let quoted = if value.contains([' ', '\'', '"', '$', '\\']) {
            format!("'{}'", value.replace('\'', "'\\''"))
        } else {
            value
        };
        format!("-plugin {quoted}")
    }

    /// The same for a libvirt domain, on one line.
    #[must_use]
    pub fn libvirt(&self) -> String {
        let value = self.value().replace('&', "&amp;").replace('\'', "&apos;").replace('<', "&lt;");
        format!("<qemu:commandline><qemu:arg value='-plugin'/><qemu:arg value='{value}'/></qemu:commandline>")
    }

    /// What to do to have an agent.
    #[must_use]
    pub fn cure(&self) -> String {
        format!("start QEMU 10.0 or later with {}", self.flag())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(file: &str) -> Plugin {
        Plugin { file: file.into(), socket: "/run/vmtree-a.sock".into() }
    }

    #[test]
    fn the_lines_are_ready_to_paste() {
        let plain = plugin("/usr/lib/vmtree/libvmtree_qemu.so");
        assert_eq!(plain.flag(), "-plugin /usr/lib/vmtree/libvmtree_qemu.so,socket=/run/vmtree-a.sock");
        assert!(
            plain
                .libvirt()
                .contains("<qemu:arg value='/usr/lib/vmtree/libvmtree_qemu.so,socket=/run/vmtree-a.sock'/>")
        );
        // Doubled for QEMU, quoted for the shell, and escaped for XML.
        let odd = plugin("/a,b/it's & <x.so");
        assert_eq!(odd.flag(), "-plugin '/a,,b/it'\\''s & <x.so,socket=/run/vmtree-a.sock'");
        assert!(odd.libvirt().contains("'/a,,b/it&apos;s &amp; &lt;x.so,socket="));
        assert!(Plugin::for_vm(Some("../a b")).value().ends_with("socket=/run/vmtree-..ab.sock"));
        assert!(Plugin::for_vm(Some("/")).value().ends_with("/run/vmtree-vm.sock"));
    }
}
