//! Containers as tests need them.

use crate::probe::containers::ContainerFacts;
use crate::workload::ContainerInfo;

/// A container that runs well; the test changes what it is about.
pub(crate) fn container(service: &str) -> ContainerFacts {
    let info: ContainerInfo = serde_json::from_value(serde_json::json!({
        "id": format!("{service}-id"), "name": format!("simgen_{service}_1"), "image": "app:1",
        "image-id": "sha256:aa", "status": "running", "exit-code": 0, "oom-killed": false, "error": "",
        "health": "healthy", "started-at": "2026-11-20T20:00:00Z", "finished-at": null,
        "restart-count": 0, "restart-policy": "unless-stopped", "stop-signal": "SIGTERM",
        "shm-size": 67_108_864, "memory-limit": 0, "networks": {"simgen_default": "10.0.0.2"},
        "published": {}, "mounts": [], "labels": {}
    }))
    .unwrap();
    ContainerFacts {
        info,
        last_words: vec![],
        processes: vec!["Ssl".into()],
    }
}
