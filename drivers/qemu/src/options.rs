//! QEMU's command line, as far as the name and the QMP monitors of a VM can be read from it.

/// Where a QMP monitor listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Listener {
    /// At this path, as QEMU was told it: it may be relative to QEMU's working directory.
    Path(String),
    /// On this file descriptor, which whoever started QEMU has opened (libvirt does).
    Fd(u32),
}

/// What is read from a command line.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CommandLine {
    /// The guest's name (`-name`).
    pub name: Option<String>,
    /// The value of `-m`.
    pub memory: Option<String>,
    /// Its QMP monitors that listen on unix sockets, in the order written.
    pub monitors: Vec<Listener>,
    /// The socket of vmtree's plugin, as QEMU was told it.
    pub agent: Option<String>,
}

impl CommandLine {
    /// Reads the arguments behind the program's name. What is not understood is passed over.
    #[must_use]
    pub fn parse<S: AsRef<str>>(arguments: &[S]) -> Self {
        let mut line = Self::default();
        for (flag, value) in pairs(arguments) {
            match flag {
                "name" => line.name = Keys::parse(value, "guest").take("guest").or(line.name),
                "plugin" => line.agent = plugin_socket(value).or(line.agent),
                "m" => line.memory = Some(value.to_owned()),
                "qmp" | "qmp-pretty" => line.monitors.extend(monitor(arguments, value)),
                "mon" => {
                    let mut keys = Keys::parse(value, "chardev");
                    let control = keys.take("mode").is_some_and(|mode| mode == "control");
                    let chardev = keys.take("chardev").filter(|_| control);
                    line.monitors.extend(chardev.and_then(|id| chardev_listener(arguments, &id)));
                }
                _ => {}
            }
        }
        line
    }
}

/// The flags with their values, without leading dashes (QEMU takes one or two).
fn pairs<S: AsRef<str>>(arguments: &[S]) -> impl Iterator<Item = (&str, &str)> {
    arguments.windows(2).filter_map(|pair| match pair {
        [flag, value] => {
            let flag = flag.as_ref();
            let name = flag.strip_prefix("--").or_else(|| flag.strip_prefix('-'))?;
            Some((name, value.as_ref()))
        }
        _ => None,
    })
}

/// The socket of `-plugin FILE,socket=PATH`, where FILE is vmtree's.
fn plugin_socket(value: &str) -> Option<String> {
    let mut keys = Keys::parse(value, "file");
    let file = keys.take("file")?;
    keys.take("socket")
        .filter(|_| file.rsplit('/').next().is_some_and(|name| name.starts_with("libvmtree_qemu")))
}

/// The listener of `-qmp VALUE`: `unix:PATH,server=on...` or `chardev:ID`.
fn monitor<S: AsRef<str>>(arguments: &[S], value: &str) -> Option<Listener> {
    if let Some(id) = value.strip_prefix("chardev:") {
        return chardev_listener(arguments, id);
    }
    let mut keys = Keys::parse(value.strip_prefix("unix:")?, "path");
    keys.take("path").map(Listener::Path)
}

/// The listener of `-chardev socket,id=ID,...`.
fn chardev_listener<S: AsRef<str>>(arguments: &[S], id: &str) -> Option<Listener> {
    pairs(arguments).filter(|(flag, _)| *flag == "chardev").find_map(|(_, value)| {
        let mut keys = Keys::parse(value, "backend");
        if keys.take("backend")? != "socket" || keys.take("id")? != id {
            return None;
        }
        let fd = keys.take("fd").and_then(|fd| fd.parse().ok()).map(Listener::Fd);
        keys.take("path").map(Listener::Path).or(fd)
    })
}

/// `key=value,...` as QEMU writes it: a comma in a value is doubled, and the first value may lack its key.
struct Keys(Vec<(String, String)>);

impl Keys {
    fn parse(text: &str, implied: &str) -> Self {
        let mut keys = Vec::new();
        for (index, part) in split(text).into_iter().enumerate() {
            match part.split_once('=') {
                Some((key, value)) => keys.push((key.to_owned(), value.to_owned())),
                None if index == 0 => keys.push((implied.to_owned(), part)),
                // A bare word is a flag that is on.
                None => keys.push((part, "on".to_owned())),
            }
        }
        Self(keys)
    }

    /// The last value of `key`, which is the one that QEMU takes.
    fn take(&mut self, key: &str) -> Option<String> {
        let index = self.0.iter().rposition(|(name, _)| name == key)?;
        Some(self.0.remove(index).1)
    }
}

/// Splits at single commas; a doubled comma is one comma of the text.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        if char == ',' && chars.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(char);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> CommandLine {
        CommandLine::parse(&text.split(' ').collect::<Vec<_>>())
    }

    #[test]
    fn reads_names_in_each_form() {
        let names = [
            "-name debian",
            "-name debian,process=x",
            "--name guest=debian,debug-threads=on",
            "-name debug-threads=on,guest=debian",
        ];
        for text in names {
            assert_eq!(read(text).name.as_deref(), Some("debian"), "{text}");
        }
        assert_eq!(read("-name a,,b").name.as_deref(), Some("a,b"));
        assert_eq!(read("-name debug-threads=on").name, None);
        assert_eq!(read("-m 2G -name").memory.as_deref(), Some("2G"));
    }

    #[test]
    fn finds_monitors_in_each_form() {
        let path = |text: &str| vec![Listener::Path(text.to_owned())];
        assert_eq!(read("-qmp unix:/a,server=on,wait=off").monitors, path("/a"));
        assert_eq!(read("-qmp unix:path=/a,server,nowait").monitors, path("/a"));
        assert_eq!(
            read("-chardev socket,id=q,path=/a,server=on -mon chardev=q,mode=control").monitors,
            path("/a")
        );
        assert_eq!(read("-mon q,mode=control -chardev socket,path=/a,id=q").monitors, path("/a"));
        assert_eq!(read("-qmp chardev:q -chardev socket,path=/a,id=q").monitors, path("/a"));
        assert_eq!(
            read("-chardev socket,id=charmonitor,fd=34,server=on -mon chardev=charmonitor,id=monitor,mode=control").monitors,
            [Listener::Fd(34)]
        );
    }

    #[test]
    fn finds_the_socket_of_our_plugin_alone() {
        let ours = "-plugin /a/libhotblocks.so,socket=/x -plugin file=/lib/libvmtree_qemu.so,socket=/run/a";
        assert_eq!(read(ours).agent.as_deref(), Some("/run/a"));
        assert_eq!(read("-plugin libvmtree_qemu.so,socket=a,,b").agent.as_deref(), Some("a,b"));
        assert_eq!(read("-plugin /a/libhotblocks.so,socket=/x").agent, None);
    }

    #[test]
    fn passes_over_other_monitors() {
        let others = [
            "-qmp tcp:localhost:4444,server=on",
            "-monitor unix:/a,server=on",
            "-chardev socket,id=q,path=/a -mon chardev=q",
            "-chardev pty,id=q -mon chardev=q,mode=control",
            "-qmp",
        ];
        for text in others {
            assert_eq!(read(text).monitors, [], "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(arguments: Vec<String>, value in "[-a-z,=:/]{0,40}") {
            let _ = CommandLine::parse(&arguments);
            for flag in ["-name", "-qmp", "-mon", "-chardev", "-plugin"] {
                let _ = CommandLine::parse(&[flag, &value]);
            }
        }
    }
}
