//! Sessions that nobody holds: they go, those that live stay, and what went can come back.

use crate::crash::{close, newest};
use crate::stack::Stack;
use crate::sweep::Sweep;

fn members(stack: &Stack) -> u64 {
    stack.redis_cli(&["scard", "sessions:all"]).parse().unwrap()
}

/// All that were there when the limit was reached, or the living alone.
fn end(stack: &Stack) -> Result<&'static str, String> {
    match members(stack) {
        1001 => Ok("old"),
        1 => Ok("new"),
        n => Err(format!("{n} members")),
    }
}

/// The sets that keep what was removed.
fn kept(stack: &Stack) -> String {
    stack.redis_cli(&["keys", "drctl:stale-members:*"])
}

#[test]
fn what_nobody_holds_goes_and_can_come_back() {
    let Some(stack) = Stack::up("stuck") else { return };
    stack
        .agreed(&["drill", "inject", "stuck-sessions/no-owner", "--ttl", "15m"])
        .ok();
    let sweep = Sweep {
        stack: &stack,
        recover: &["recover", "stuck-sessions"],
        end,
        kept,
    };
    assert_eq!(sweep.run(), [""; 0]);

    let report = stack.agreed(&["recover", "stuck-sessions"]);
    assert_eq!(
        report.event("report")["report"]["outcome"],
        "verified",
        "{}",
        report.stdout
    );
    assert_eq!(end(&stack), Ok("new"));
    let set = kept(&stack);
    assert_eq!(stack.redis_cli(&["scard", &set]), "1000");
    let life: i64 = stack.redis_cli(&["ttl", &set]).parse().unwrap();
    assert!((1..=24 * 3600).contains(&life), "{life}");
    let (id, _) = newest(&stack);
    close(&stack, &id).unwrap();
    stack.redis_cli(&["del", &set]);
    stack.agreed(&["drill", "heal"]).ok();
    assert_eq!(members(&stack), 0);
    stack.wait_healthy();
}
