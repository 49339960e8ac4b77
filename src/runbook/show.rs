//! The effective runbook as YAML.

use super::model::Runbook;

/// The runbook with every default written out, as a runbook that loads to the same value. Secrets are shown as the
/// references they are.
#[must_use]
pub fn render(runbook: &Runbook) -> String {
    // Writing these types to a string cannot fail: every key is a text, and there is no input or output.
    serde_yaml::to_string(&runbook.to_raw()).unwrap_or_default()
}
