//! Where the runbook is: flag, environment, then the usual places.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

/// No runbook was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct NotFound {
    /// Every place that was looked at, in order, and why it was not taken.
    pub looked_at: Vec<LookedAt>,
}

/// A place where a runbook could have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookedAt {
    /// What named the place: `--runbook`, `$DRCTL_RUNBOOK`, …
    pub named_by: &'static str,
    /// The place; none if its variable is not set.
    pub path: Option<PathBuf>,
    /// Why it was not taken.
    pub why: String,
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no runbook found; looked at")?;
        for place in &self.looked_at {
            match &place.path {
                Some(path) => write!(f, "\n  {} ({}): {}", path.display(), place.named_by, place.why)?,
                None => write!(f, "\n  {}: {}", place.named_by, place.why)?,
            }
        }
        f.write_str("\nname it with `--runbook PATH`, or see what a runbook holds: `drctl runbook schema`")
    }
}

/// Finds the runbook: `flag`, `$DRCTL_RUNBOOK`, `./drctl.yaml`, `$XDG_CONFIG_HOME/drctl/runbook.yaml`
/// (`$HOME/.config` where that is not set), `/etc/drctl/runbook.yaml`.
///
/// A place that was named by the flag or by `$DRCTL_RUNBOOK` is the only one: falling back to another runbook would
/// mean acting on another deployment than the one that was asked for.
///
/// # Errors
/// [`NotFound`] with the places looked at.
pub fn locate(flag: Option<&Path>, env: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, NotFound> {
    locate_among(
        flag,
        &env,
        Path::new("drctl.yaml"),
        Path::new("/etc/drctl/runbook.yaml"),
    )
}

fn locate_among(
    flag: Option<&Path>,
    env: &dyn Fn(&str) -> Option<OsString>,
    local: &Path,
    global: &Path,
) -> Result<PathBuf, NotFound> {
    // An empty variable counts as not set, as the XDG base directory specification says for its own.
    let variable = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut looked_at = Vec::new();
    let mut look = |named_by: &'static str, path: Option<PathBuf>| -> Option<PathBuf> {
        let why = match &path {
            None => "not set".to_owned(),
            Some(path) => match std::fs::metadata(path) {
                Ok(_) => return Some(path.clone()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => "does not exist".to_owned(),
                Err(error) => error.to_string(),
            },
        };
        looked_at.push(LookedAt { named_by, path, why });
        None
    };
    if let Some(flag) = flag {
        return look("--runbook", Some(flag.to_owned())).ok_or(NotFound { looked_at });
    }
    if let Some(path) = variable("DRCTL_RUNBOOK") {
        return look("$DRCTL_RUNBOOK", Some(path)).ok_or(NotFound { looked_at });
    }
    let _ = look("$DRCTL_RUNBOOK", None);
    // The specification ignores relative paths in its variables.
    let config = variable("XDG_CONFIG_HOME")
        .filter(|path| path.is_absolute())
        .map(|path| ("$XDG_CONFIG_HOME", path));
    let config = config.or_else(|| variable("HOME").map(|home| ("$HOME/.config", home.join(".config"))));
    let (config_name, config) = config.map_or(("$XDG_CONFIG_HOME", None), |(name, path)| {
        (name, Some(path.join("drctl/runbook.yaml")))
    });
    look("current directory", Some(local.to_owned()))
        .or_else(|| look(config_name, config))
        .or_else(|| look("system", Some(global.to_owned())))
        .ok_or(NotFound { looked_at })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Home(tempfile::TempDir);

    impl Home {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn file(&self, name: &str) -> PathBuf {
            let path = self.0.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "version: 1\n").unwrap();
            path
        }

        fn locate(&self, flag: Option<&Path>, env: &[(&str, &Path)]) -> Result<PathBuf, NotFound> {
            let lookup = |name: &str| {
                env.iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| value.as_os_str().to_owned())
            };
            locate_among(
                flag,
                &lookup,
                &self.0.path().join("drctl.yaml"),
                &self.0.path().join("etc/drctl/runbook.yaml"),
            )
        }
    }

    #[test]
    fn the_order_is_flag_environment_here_user_system() {
        let home = Home::new();
        let system = home.file("etc/drctl/runbook.yaml");
        assert_eq!(home.locate(None, &[]).unwrap(), system);
        let fallback = home.file(".config/drctl/runbook.yaml");
        let user_home = home.0.path();
        assert_eq!(home.locate(None, &[("HOME", user_home)]).unwrap(), fallback);
        let user = home.file("xdg/drctl/runbook.yaml");
        let xdg = home.0.path().join("xdg");
        assert_eq!(
            home.locate(None, &[("HOME", user_home), ("XDG_CONFIG_HOME", &xdg)])
                .unwrap(),
            user
        );
        let here = home.file("drctl.yaml");
        assert_eq!(home.locate(None, &[("XDG_CONFIG_HOME", &xdg)]).unwrap(), here);
        let named = home.file("named.yaml");
        assert_eq!(home.locate(None, &[("DRCTL_RUNBOOK", &named)]).unwrap(), named);
        let flag = home.file("flag.yaml");
        assert_eq!(
            home.locate(Some(&flag), &[("DRCTL_RUNBOOK", &named)]).unwrap(),
            flag
        );
    }

    #[test]
    fn a_named_runbook_that_is_missing_is_not_replaced_by_another() {
        let home = Home::new();
        home.file("drctl.yaml");
        let missing = home.0.path().join("missing.yaml");
        let named_by = |found: Result<PathBuf, NotFound>| {
            let places = found.unwrap_err().looked_at;
            places.iter().map(|place| place.named_by).collect::<Vec<_>>()
        };
        assert_eq!(named_by(home.locate(Some(&missing), &[])), ["--runbook"]);
        let by_variable = home.locate(None, &[("DRCTL_RUNBOOK", &missing)]);
        assert_eq!(named_by(by_variable), ["$DRCTL_RUNBOOK"]);
    }

    #[test]
    fn the_error_lists_the_places_and_the_next_command() {
        let text = Home::new()
            .locate(None, &[("DRCTL_RUNBOOK", Path::new(""))])
            .unwrap_err()
            .to_string();
        for part in [
            "$DRCTL_RUNBOOK: not set",
            "drctl.yaml (current directory): does not exist",
            "$XDG_CONFIG_HOME: not set",
            "(system)",
            "--runbook PATH",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }
}
