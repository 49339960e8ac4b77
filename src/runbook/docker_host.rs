//! The address of a Docker engine, as a runbook or `$DOCKER_HOST` gives it.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::text::{BadText, text_type};

const EXAMPLE: &str =
    "for example `unix:///var/run/docker.sock`, `ssh://admin@192.168.1.11` or `tcp://10.0.0.5:2375`";
/// Where an engine listens when nothing else is said.
const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// The address of a Docker engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerHost {
    /// A socket of this host.
    Unix(PathBuf),
    /// `host:port` of an engine that listens without TLS.
    Tcp(String),
    /// A socket of another host, reached by SSH.
    Ssh(SshAddress),
}

/// `ssh://[user@]host[:port][/path/of/the/socket]`. Its parts become arguments of `ssh`, so
/// none of them can be taken for an option or for anything that a shell reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshAddress {
    /// Login name; OpenSSH's configuration decides when it is left out.
    pub user: Option<String>,
    /// Name, address or alias of OpenSSH's configuration.
    pub host: String,
    /// Port; OpenSSH's configuration decides when it is left out.
    pub port: Option<u16>,
    /// Path of the engine's socket there.
    pub socket: PathBuf,
}

impl Default for DockerHost {
    /// The local engine's usual socket.
    fn default() -> Self {
        Self::Unix(PathBuf::from(DEFAULT_SOCKET))
    }
}

impl FromStr for DockerHost {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        match text.split_once("://") {
            Some(("unix", path)) if Path::new(path).is_absolute() => Ok(Self::Unix(PathBuf::from(path))),
            Some(("unix", _)) => Err(BadText::new("the socket's path is not absolute", EXAMPLE)),
            Some(("tcp", address)) => {
                let port = address
                    .trim_end_matches('/')
                    .rsplit_once(':')
                    .filter(|(host, _)| !host.is_empty());
                let is_number = port
                    .is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
                match port.map(|(_, port)| port.parse::<u16>()) {
                    Some(Ok(1..)) => Ok(Self::Tcp(address.trim_end_matches('/').to_owned())),
                    Some(_) if is_number => {
                        Err(BadText::new("the port is not a number from 1 to 65535", EXAMPLE))
                    }
                    _ => Err(BadText::new("a tcp:// address needs a host and a port", EXAMPLE)),
                }
            }
            Some(("ssh", address)) => ssh_address(address).map(Self::Ssh),
            _ => Err(BadText::new("not an address of a Docker engine", EXAMPLE)),
        }
    }
}

fn ssh_address(text: &str) -> Result<SshAddress, BadText> {
    let bad = |message: &str| BadText::new(message, "for example `ssh://admin@192.168.1.11:2222`");
    let (login, path) = match text.find('/') {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let (user, place) = match login.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, login),
    };
    if user.is_some_and(|u| u.contains(':')) {
        return Err(BadText::new(
            "the address holds a password",
            "remove it: SSH logs in with a key (ssh-copy-id), and an address is printed in reports",
        ));
    }
    if user.is_some_and(|u| !is_harmless(u, "_.+@\\-")) {
        return Err(bad("the user's name holds something that a login name does not"));
    }
    // An IPv6 address stands in brackets, because it holds colons itself.
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest
                .split_once(']')
                .ok_or_else(|| bad("the address has an opening bracket and no closing one"))?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(bad("between the brackets stands no IPv6 address"));
            }
            (host, port.strip_prefix(':').or((!port.is_empty()).then_some("")))
        }
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    if !host.contains(':') && !is_harmless(host, "_.-") {
        return Err(bad(if host.is_empty() {
            "an ssh:// address needs a host"
        } else {
            "the host's name holds something that a host name does not"
        }));
    }
    let port = match port.map(str::parse::<u16>) {
        None => None,
        Some(Ok(port @ 1..)) => Some(port),
        Some(_) => return Err(bad("the port is not a number from 1 to 65535")),
    };
    let path = path.trim_end_matches('/');
    // `%` and a colon mean something to ssh's -L.
    if !path.is_empty() && !is_harmless(&path.replace('/', "x"), "_.+-") {
        return Err(bad("the path of the socket holds something unusual"));
    }
    Ok(SshAddress {
        user: user.map(str::to_owned),
        host: host.to_owned(),
        port,
        socket: PathBuf::from(if path.is_empty() { DEFAULT_SOCKET } else { path }),
    })
}

/// Letters, digits and `more`, and no dash in front: no option, nothing for a shell.
fn is_harmless(text: &str, more: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || more.contains(c))
}

impl SshAddress {
    /// `user@host`, as people write it.
    #[must_use]
    pub fn login(&self) -> String {
        match &self.user {
            Some(user) => format!("{user}@{}", self.host),
            None => self.host.clone(),
        }
    }

    /// The command by which a person runs something there.
    #[must_use]
    pub fn command(&self, what: &str) -> String {
        let port = self.port.map(|p| format!("-p {p} ")).unwrap_or_default();
        format!("ssh {port}{} {what}", self.login())
    }
}

impl fmt::Display for SshAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ssh://")?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?;
        } else {
            f.write_str(&self.host)?;
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        if self.socket != Path::new(DEFAULT_SOCKET) {
            write!(f, "{}", self.socket.display())?;
        }
        Ok(())
    }
}

impl fmt::Display for DockerHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Ssh(address) => address.fmt(f),
        }
    }
}

text_type!(@serde DockerHost, "drctl-docker-host", { "pattern": "^(unix|tcp|ssh)://" });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_alike() {
        for text in [
            "unix:///run/user/1000/docker.sock",
            "tcp://10.0.0.5:2375",
            "ssh://nas",
            "ssh://admin@192.168.1.11",
            "ssh://admin@192.168.1.11:2222",
            "ssh://EXAMPLE\\first.last@host.example.org",
            "ssh://first@example.org@host",
            "ssh://root@[fe80::1]:22",
            "ssh://me@host/run/user/1000/docker.sock",
        ] {
            assert_eq!(text.parse::<DockerHost>().unwrap().to_string(), text);
        }
        let Ok(DockerHost::Ssh(nas)) = "ssh://admin@nas:2222/".parse() else {
            panic!("no SSH address");
        };
        assert_eq!((nas.login().as_str(), nas.port), ("admin@nas", Some(2222)));
        assert_eq!(nas.socket, Path::new("/var/run/docker.sock"));
    }

    #[test]
    fn a_port_out_of_range_is_named() {
        for text in ["tcp://h:70000", "tcp://h:0", "tcp://h:99999999999999999999"] {
            let bad = text.parse::<DockerHost>().unwrap_err();
            assert_eq!(bad.message, "the port is not a number from 1 to 65535", "{text}");
        }
        let bad = "tcp://h".parse::<DockerHost>().unwrap_err();
        assert_eq!(bad.message, "a tcp:// address needs a host and a port");
    }

    #[test]
    fn nothing_that_ssh_or_a_shell_would_obey_gets_through() {
        for text in [
            "ssh://",
            "ssh://@host",
            "ssh://user@",
            "ssh://-oProxyCommand=touch%20x",
            "ssh://-oProxyCommand=x@host",
            "ssh://user@-oProxyCommand=x",
            "ssh://us er@host",
            "ssh://$(id)@host",
            "ssh://user@host;id",
            "ssh://user@`id`",
            "ssh://user:secret@host",
            "ssh://user@host:0",
            "ssh://user@host:65536",
            "ssh://user@host:22:23",
            "ssh://user@host:-p",
            "ssh://user@[host]",
            "ssh://user@[::1]22",
            "ssh://user@host/run/docker.sock:/etc/shadow",
            "ssh://user@host/%h",
            "ssh://user@host\n",
        ] {
            assert!(text.parse::<DockerHost>().is_err(), "{text:?}");
        }
    }
}
