//! The effective runbook as YAML.

use super::model::Runbook;

/// The runbook with every default written out, as a runbook that loads to the same value. Secrets are shown as the
/// references they are.
#[must_use]
pub fn render(runbook: &Runbook) -> String {
    // A query is shown on one line, as it can be copied into psql.
    let options = serde_yaml::ser_options! { folded_wrap_chars: 1_000_000 };
    // Writing these types to a string cannot fail: every key is a text, and there is no input or output.
    serde_yaml::to_string_with_options(&runbook.to_raw(), options).unwrap_or_default()
}
