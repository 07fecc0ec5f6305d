//! The kernel's BPF programs and links: the product's remains, and verifier figures.

use anyhow::Result;
use aya::programs::{loaded_links, loaded_programs};
use serde_json::{Value, json};

pub(crate) fn loaded() -> Result<Value> {
    let mut programs = Vec::new();
    for program in loaded_programs() {
        let program = program?;
        programs.push(json!({
            "id": program.id(),
            "name": String::from_utf8_lossy(program.name()),
            "type": format!("{:?}", program.program_type()),
            "instructions": program.verified_instruction_count(),
        }));
    }
    let links = loaded_links().count();
    Ok(json!({"programs": programs, "links": links}))
}
