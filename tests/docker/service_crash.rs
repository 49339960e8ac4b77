//! Services that stopped, froze, or crash again and again: each is named, recovered, and as users want it; what only
//! looks like one of these is let be.

use std::time::Duration;

use crate::stack::Stack;

/// What `diagnose --json` says of a scenario.
fn opinion(stack: &Stack, scenario: &str) -> serde_json::Value {
    let out = stack.drctl(&["diagnose", "--json"]);
    let mut all = out.events();
    all.retain(|e| e["event"] == "opinion");
    assert!(!all.is_empty(), "{} {}", out.stdout, out.stderr);
    if scenario.is_empty() {
        return all.swap_remove(0);
    }
    all.retain(|e| e["scenario"] == scenario);
    all.pop().unwrap_or_default()
}

fn state(stack: &Stack) -> String {
    stack.inspect(
        "api1",
        "{{.Id}} {{.State.Status}} {{.HostConfig.RestartPolicy.Name}}",
    )
}

#[test]
fn every_crash_is_recovered() {
    let Some(stack) = Stack::up("crash") else { return };
    for (fault, remedy) in [
        ("stopped", "start"),
        ("killed", "start"),
        ("frozen", "thaw"),
        ("paused", "thaw"),
        // Exit code 0 and no restart policy do not make a job of a service that others need.
        ("clean-exit", "start"),
    ] {
        let fault = format!("service-crash/{fault}");
        stack.agreed(&["drill", "inject", &fault, "--ttl", "10m"]).ok();
        let first = opinion(&stack, "");
        assert_eq!(first["scenario"], "service-crash", "{fault}: {first}");
        let out = stack.agreed(&["recover", "service-crash"]);
        assert_eq!(out.event("plan")["plan"]["remedy"], remedy, "{fault}");
        out.ok();
        stack.wait_healthy();
        stack.agreed(&["drill", "heal"]).ok();
        stack.agreed(&["incident", "close"]).ok();
    }
}

#[test]
fn a_crash_loop_is_ended_by_a_new_container_and_the_old_one_can_come_back() {
    let Some(stack) = Stack::up("loop") else { return };
    let before = stack.inspect("api1", "{{.Id}}");
    let config = "{{json .Config.Env}} {{json .HostConfig.Binds}} {{.Config.Image}} {{.Image}} {{json .Config.Healthcheck}}";
    let described = stack.inspect("api1", config);
    stack
        .agreed(&["drill", "inject", "service-crash/crash-loop", "--ttl", "10m"])
        .ok();
    let first = opinion(&stack, "");
    assert_eq!(first["scenario"], "service-crash", "{first}");
    let out = stack.agreed(&["recover", "service-crash"]);
    assert_eq!(out.event("plan")["plan"]["remedy"], "recreate");
    out.ok();
    stack.wait_healthy();
    assert_ne!(stack.inspect_name("api1", "{{.Id}}"), before);
    assert_eq!(stack.inspect_name("api1", config), described);
    // The name of the service leads to the new one, from inside.
    assert_eq!(
        stack
            .inspect_name(
                "api1",
                "{{range .NetworkSettings.Networks}}{{json .Aliases}}{{end}}"
            )
            .matches("api1")
            .count(),
        1
    );

    stack.agreed(&["incident", "undo"]).ok();
    assert_eq!(
        stack.inspect("api1", "{{.Id}}"),
        before,
        "exactly one is left, the old one"
    );
    stack.agreed(&["drill", "heal"]).ok();
    stack.wait_healthy();
    assert_eq!(
        crate::stack::docker(&["images", "-q", "--filter", "reference=drctl-keep"]).ok(),
        ""
    );

    // Closed instead, the old one goes, and the service stays.
    stack
        .agreed(&["drill", "inject", "service-crash/crash-loop", "--ttl", "10m"])
        .ok();
    stack.agreed(&["recover", "service-crash"]).ok();
    stack.agreed(&["drill", "heal"]).ok();
    stack.agreed(&["incident", "close"]).ok();
    assert_ne!(
        stack.inspect("api1", "{{.Id}}"),
        before,
        "exactly one is left, the new one"
    );
    stack.wait_healthy();
    assert_eq!(stack.leftovers_after(Duration::from_secs(10)), "");
}

#[test]
fn a_crash_loop_heals_by_itself_when_its_time_is_over() {
    let Some(stack) = Stack::up("looptime") else {
        return;
    };
    stack
        .agreed(&["drill", "inject", "service-crash/crash-loop", "--ttl", "20s"])
        .ok();
    let end = std::time::Instant::now() + Duration::from_secs(90);
    while !stack.leftovers().is_empty() || stack.inspect("api1", "{{.State.Health.Status}}") != "healthy" {
        assert!(
            std::time::Instant::now() < end,
            "{}",
            stack.inspect("api1", "{{json .State}}")
        );
        std::thread::sleep(Duration::from_millis(500));
    }
    stack.wait_healthy();
}

#[test]
fn a_starting_service_is_let_be() {
    let Some(stack) = Stack::up("notcrash") else {
        return;
    };
    let fault = "service-crash/starting";
    stack.agreed(&["drill", "inject", fault, "--ttl", "10m"]).ok();
    let before = state(&stack);
    let said = opinion(&stack, "service-crash");
    assert_eq!(said["certainty"], "absent", "{fault}: {said}");
    let out = stack.agreed(&["recover", "service-crash"]);
    assert!(out.event("plan").is_null(), "{fault}: {}", out.stdout);
    out.ok();
    assert_eq!(state(&stack), before, "{fault}");
    stack.agreed(&["drill", "heal"]).ok();
    stack.wait_healthy();
}
