//! What a model is told of functions where its template cannot do it.

use serde_json::{Value, json};

use super::calls::CallSyntax;
use super::dialect::arguments_of;

/// Marks, while messages are rewritten, those that are results of calls.
const RESULT: &str = "result";

/// Tells of the functions, and how to call them.
fn text(tools: &Value, calls: &CallSyntax) -> String {
    let functions = tools.as_array().into_iter().flatten();
    let lines: Vec<String> = functions.map(|tool| tool["function"].to_string()).collect();
    format!(
        "You can call these functions, each described by one line of JSON:\n{}\n\nTo call a function, write:\n{}\nThen end \
         your answer: the result is given to you. Call a function only where it helps; otherwise answer as usual.",
        lines.join("\n"),
        calls.write("NAME", "{\"PARAMETER\": VALUE}"),
    )
}

/// Puts the instructions into the system message, which is made if there is none.
pub(super) fn into_system(messages: &mut Vec<Value>, tools: &Value, calls: &CallSyntax) {
    let text = text(tools, calls);
    let system = |message: &Value| message["role"] == "system";
    match messages.first_mut().filter(|message| system(message)) {
        Some(message) => append(message, &text),
        None => messages.insert(0, json!({"role": "system", "content": text})),
    }
}

/// Puts the instructions in front of the first message of the user, for templates that take no system message.
pub(super) fn into_user(messages: &mut Vec<Value>, tools: &Value, calls: &CallSyntax) {
    let text = text(tools, calls);
    let mut users = messages.iter_mut().filter(|message| message["role"] == "user");
    match users.next() {
        Some(message) => {
            let said = message["content"].as_str().unwrap_or_default();
            message["content"] = format!("{text}\n\n{said}").into();
        }
        None => messages.insert(0, json!({"role": "user", "content": text})),
    }
}

/// Writes calls and their results as the text of ordinary messages, for templates that know neither.
pub(super) fn spell_out(messages: Vec<Value>, calls: &CallSyntax) -> Vec<Value> {
    let mut told: Vec<Value> = Vec::with_capacity(messages.len());
    for mut message in messages {
        if let Some(made) = message
            .as_object_mut()
            .and_then(|fields| fields.remove("tool_calls"))
        {
            let gap = calls.repeats.as_deref().unwrap_or("\n");
            let texts: Vec<String> = made
                .as_array()
                .into_iter()
                .flatten()
                .map(|call| {
                    let function = &call["function"];
                    calls.write(
                        function["name"].as_str().unwrap_or_default(),
                        &arguments_of(function),
                    )
                })
                .collect();
            append(&mut message, &texts.join(gap));
        }
        let result = message["role"] == "tool";
        if result {
            let result = message["content"].as_str().unwrap_or_default();
            let text = format!("<tool_response>\n{result}\n</tool_response>");
            message = json!({"role": "user", "content": text, RESULT: true});
        }
        // Results, and what a user says behind them, are one message: templates want roles to alternate.
        let behind = told
            .last_mut()
            .filter(|last| last[RESULT] == true && message["role"] == "user");
        if let Some(last) = behind {
            append(last, message["content"].as_str().unwrap_or_default());
            last[RESULT] = result.into();
            continue;
        }
        told.push(message);
    }
    for message in &mut told {
        message.as_object_mut().map(|fields| fields.remove(RESULT));
    }
    told
}

fn append(message: &mut Value, text: &str) {
    let said = message["content"].as_str().unwrap_or_default();
    let gap = if said.is_empty() { "" } else { "\n\n" };
    message["content"] = format!("{said}{gap}{text}").into();
}
