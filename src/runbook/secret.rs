//! Reading a secret where its reference points.
use super::SecretRef;
use secrecy::SecretString;
use std::time::Duration;

/// Why a secret could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SecretError(String);

impl SecretRef {
    /// The secret's value.
    ///
    /// # Errors
    /// When it is not where the reference says.
    pub async fn resolve(&self, container_env: &[String]) -> Result<SecretString, SecretError> {
        let text = match self {
            Self::Env(name) => std::env::var(name).map_err(|e| SecretError(format!("${name}: {e}")))?,
            Self::ContainerEnv(name) => container_env
                .iter()
                .find_map(|e| e.strip_prefix(name.as_str())?.strip_prefix('='))
                .map(str::to_owned)
                .ok_or_else(|| SecretError(format!("the container has no variable {name}")))?,
            Self::File(path) => {
                std::fs::read_to_string(path).map_err(|e| SecretError(format!("{}: {e}", path.display())))?
            }
            Self::Command(argv) => {
                let (program, args) = argv
                    .split_first()
                    .ok_or_else(|| SecretError("empty command".into()))?;
                let out = tokio::time::timeout(
                    Duration::from_secs(10),
                    tokio::process::Command::new(program)
                        .args(args)
                        .kill_on_drop(true)
                        .output(),
                )
                .await
                .map_err(|_| SecretError(format!("{program}: no answer within 10 s")))?
                .map_err(|e| SecretError(format!("{program}: {e}")))?;
                String::from_utf8_lossy(&out.stdout).into_owned()
            }
        };
        Ok(SecretString::from(text.trim_end_matches(['\n', '\r']).to_owned()))
    }
}
