//! Services that their limits hold back, and some that only look so.

use std::time::Duration;

use crate::stack::Stack;

const LIMITS: &str =
    "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.NanoCpus}} {{.HostConfig.CpuQuota}}";

fn first(stack: &Stack) -> serde_json::Value {
    let out = stack.drctl(&["diagnose", "--json"]);
    out.events()
        .into_iter()
        .find(|e| e["event"] == "opinion")
        .unwrap_or_default()
}

#[test]
fn a_limit_that_is_too_low_is_raised_and_can_be_put_back() {
    let Some(stack) = Stack::up("overload") else {
        return;
    };
    for fault in ["service-overload/cpu-limit", "service-overload/memory-limit"] {
        stack.agreed(&["drill", "inject", fault, "--ttl", "10m"]).ok();
        let low = stack.inspect("api1", LIMITS);
        let found = first(&stack);
        assert_eq!(found["scenario"], "service-overload", "{fault}: {found}");
        // A service with little to do touches a processor limit only now and then: a look may miss it.
        let mut out = stack.agreed(&["recover", "service-overload"]);
        for _ in 0..4 {
            if !out.event("plan").is_null() {
                break;
            }
            out = stack.agreed(&["recover", "service-overload"]);
        }
        assert_eq!(out.event("plan")["plan"]["remedy"], "raise-limit", "{fault}");
        out.ok();
        let high = stack.inspect("api1", LIMITS);
        assert_ne!(high, low, "{fault}");
        stack.wait_healthy();
        stack.agreed(&["incident", "undo"]).ok();
        assert_eq!(stack.inspect("api1", LIMITS), low, "{fault}");
        stack.agreed(&["drill", "heal"]).ok();
        stack.wait_healthy();
        assert_ne!(first(&stack)["scenario"], "service-overload", "{fault} is healed");
    }
}

#[test]
fn a_second_instance_takes_work_under_the_same_name_and_goes_with_the_undo() {
    let Some(stack) = Stack::up("scaleout") else {
        return;
    };
    stack
        .agreed(&["drill", "inject", "service-overload/memory-limit", "--ttl", "10m"])
        .ok();
    stack
        .agreed(&["recover", "service-overload", "--remedy", "scale-out"])
        .ok();
    let second = stack.leftovers();
    assert!(second.contains("_drctl_second_"), "{second}");
    let name = second.split(' ').next().unwrap();
    let aliases = crate::stack::docker(&[
        "inspect",
        "--format",
        "{{range .NetworkSettings.Networks}}{{json .Aliases}}{{end}}",
        name,
    ])
    .ok();
    assert!(aliases.contains("\"api1\""), "{aliases}");
    // Compose does not know it.
    assert_eq!(stack.container("api1").lines().count(), 1);
    stack.agreed(&["incident", "undo"]).ok();
    assert_eq!(stack.leftovers_after(Duration::from_secs(5)), "");
    stack.agreed(&["drill", "heal"]).ok();
    stack.wait_healthy();
}

#[test]
fn a_slow_database_and_a_busy_service_are_let_be() {
    let Some(stack) = Stack::up("notoverload") else {
        return;
    };
    for fault in ["service-overload/slow-database", "service-overload/busy-but-fine"] {
        stack.agreed(&["drill", "inject", fault, "--ttl", "5m"]).ok();
        let before = stack.inspect("api1", LIMITS);
        let out = stack.agreed(&["recover", "service-overload"]);
        assert!(out.event("plan").is_null(), "{fault}: {}", out.stdout);
        assert!(matches!(out.code, Some(0 | 4)), "{fault}: {out:?}");
        assert_eq!(stack.inspect("api1", LIMITS), before);
        stack.agreed(&["drill", "heal"]).ok();
        stack.wait_healthy();
    }
}
