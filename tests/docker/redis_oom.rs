//! A Redis whose memory is full: room is made, nobody's keys go but those that are called disposable, and a limit that
//! was raised can be put back.

use crate::crash::{close, newest};
use crate::stack::{Output, Stack};

fn limit(stack: &Stack) -> String {
    stack.redis_cli(&["config", "get", "maxmemory"])
}

fn is_refused(stack: &Stack) -> bool {
    stack.redis_cli(&["set", "tried", "1"]).starts_with("OOM")
}

fn verified(out: &Output) {
    let outcome = &out.event("report")["report"]["outcome"];
    assert_eq!(outcome, "verified", "{}{}", out.stdout, out.stderr);
}

#[test]
fn a_full_memory_gets_room_and_keeps_what_is_not_disposable() {
    let Some(stack) = Stack::up("redisoom") else {
        return;
    };
    stack.redis_cli(&["set", "mine", "1"]);
    for (fault, remedy) in [("cache-full", "clear-cache"), ("limit-low", "raise-limit")] {
        let fault = format!("redis-oom/{fault}");
        let before = limit(&stack);
        stack.agreed(&["drill", "inject", &fault, "--ttl", "15m"]).ok();
        assert!(is_refused(&stack), "{fault}");
        let low = limit(&stack);
        let out = stack.agreed(&["recover", "redis-oom", "--remedy", remedy]);
        verified(&out);
        assert!(!is_refused(&stack), "{fault}");
        assert_eq!(stack.redis_cli(&["get", "mine"]), "1", "{fault}");
        let (id, _) = newest(&stack);
        if remedy == "raise-limit" {
            assert_ne!(limit(&stack), low);
            stack.agreed(&["incident", "undo", &id]).ok();
            assert_eq!(limit(&stack), low);
            assert!(is_refused(&stack), "{fault}: taken back");
        }
        close(&stack, &id).unwrap();
        stack.agreed(&["drill", "heal"]).ok();
        assert_eq!(limit(&stack), before);
        stack.wait_healthy();
    }
}
