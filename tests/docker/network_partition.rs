//! Services out of their network, without their names, and without a network.

use std::time::Duration;

use crate::stack::Stack;

/// Every place of the stack's containers, without what a new place changes: addresses, identifiers.
fn places(stack: &Stack) -> String {
    ["api1", "api2", "cv_service", "nginx", "postgres", "redis"]
        .map(|service| {
            let networks = stack.inspect(
                service,
                "{{.State.Status}} {{range $n, $e := .NetworkSettings.Networks}}{{$n}}:{{len $e.Aliases}} {{end}}",
            );
            format!("{service} {networks}\n")
        })
        .concat()
}

#[test]
fn partitions_are_named_mended_and_can_be_taken_back() {
    let Some(stack) = Stack::up("partition") else {
        return;
    };
    stack.wait_healthy();
    let sound = places(&stack);
    for (fault, undo) in [
        ("detached", true),
        ("alias-missing", true),
        ("network-gone", false),
    ] {
        stack
            .agreed(&["drill", "inject", &format!("network-partition/{fault}")])
            .ok();
        let broken = places(&stack);
        assert_ne!(broken, sound, "{fault}");

        let found = stack.drctl(&["diagnose", "--json"]);
        let first = found.events().into_iter().next().unwrap_or_default();
        assert_eq!(
            first["scenario"], "network-partition",
            "{fault}: {}",
            found.stdout
        );
        assert_eq!(first["certainty"], "confirmed", "{fault}: {}", found.stdout);

        let recovered = stack.agreed(&["recover", "network-partition"]);
        let id = recovered.event("incident")["id"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        recovered.ok();
        stack.wait_healthy();
        assert_eq!(places(&stack), sound, "{fault}");
        if undo {
            stack.agreed(&["incident", "undo", &id]).ok();
            assert_eq!(
                places(&stack),
                broken,
                "{fault}: the undo must bring back what was"
            );
            stack.agreed(&["recover", "network-partition"]).ok();
            stack.wait_healthy();
        }
        stack.agreed(&["drill", "heal"]).ok();
        assert_eq!(places(&stack), sound, "{fault}: healing found something to do");
    }
    assert_eq!(stack.leftovers_after(Duration::from_secs(15)), "");
}

#[test]
fn what_only_looks_like_a_partition_is_left_alone() {
    let Some(stack) = Stack::up("unparted") else {
        return;
    };
    stack.wait_healthy();
    for (fault, code, names) in [
        ("stopped-dependency", Some(4), "redis-failure"),
        // The kernel takes connections for a frozen process: everything is reached.
        ("frozen-dependency", Some(0), ""),
    ] {
        stack
            .agreed(&["drill", "inject", &format!("network-partition/{fault}")])
            .ok();
        let before = places(&stack);
        let out = stack.agreed(&["recover", "network-partition"]);
        assert_eq!(out.code, code, "{fault}: {}{}", out.stdout, out.stderr);
        assert_eq!(
            out.event("diagnosis")["look_alike"].as_str().unwrap_or_default(),
            names
        );
        assert!(out.event("plan").is_null(), "{fault}");
        assert_eq!(places(&stack), before, "{fault}");
        stack.agreed(&["drill", "heal"]).ok();
        stack.wait_healthy();
    }
    assert_eq!(stack.leftovers_after(Duration::from_secs(15)), "");
}
