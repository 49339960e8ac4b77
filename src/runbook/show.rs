//! The effective runbook as YAML and as JSON.

use super::alerting::{Address, Notify, Ping, Webhook};
use super::model::Runbook;
use super::text::WebUrl;

/// The runbook with every default written out, as a runbook that loads to the same value. Secrets are shown as the
/// references they are, and of a plain address for messages only the host: whoever knows all of it can write there.
/// Loading refuses such an address, so that nobody is told by what was copied from here.
#[must_use]
pub fn render(runbook: &Runbook) -> String {
    // A query is shown on one line, as it can be copied into psql.
    let options = serde_yaml::ser_options! { folded_wrap_chars: 1_000_000 };
    let mut raw = runbook.to_raw();
    for way in &mut raw.notify {
        let (Notify::Webhook(Webhook { url }) | Notify::Ping(Ping { url })) = way else {
            continue;
        };
        if let Address::Plain(address) = url {
            *url = Address::Plain(host_only(address));
        }
    }
    // Writing these types to a string cannot fail: every key is a text, and there is no input or output.
    serde_yaml::to_string_with_options(&raw, options).unwrap_or_default()
}

fn host_only(address: &WebUrl) -> WebUrl {
    let shown = reqwest::Url::parse(address.as_str())
        .ok()
        .and_then(|url| Some(format!("{}://{}/…", url.scheme(), url.host_str()?)));
    WebUrl::trusted(shown.as_deref().unwrap_or("…"))
}

/// The same as JSON.
#[must_use]
pub fn to_json(runbook: &Runbook) -> serde_json::Value {
    serde_json::to_value(runbook.to_raw()).unwrap_or_default()
}
