// What the page says, in English and in Chinese.

const ENGLISH = {
  title: "Consents",
  skip: "Skip to the content",
  other: "中文",
  otherLong: "中文：切换到中文",
  themeLight: "Light",
  themeDark: "Dark",
  themeLong: "Appearance",
  clinic: "Worklist",
  leave: "Sign out",
  entry: "Consents of patients",
  entryText: "Here patients and the ethics office see, grant and withdraw what data may be used for.",
  token: "Token",
  elsewhere: "Sign in with the hospital's account",
  signIn: {
    refused: "The hospital's account opens nothing here: ask who runs this service.",
    expired: "Signing in took too long: try again.",
    unavailable: "The hospital's accounts cannot be reached just now: try again, or use a token.",
  },
  tokenHint: "The hospital gave it to you. It is asked for once; after a while without use you are signed out.",
  enter: "Sign in",
  search: "Find a patient",
  more: "Show more",
  found: (n, more) => (n ? `${more ? "More than " : ""}${n} found` : "None found"),
  permits: (list) => `Permits ${list}`,
  permitsNothing: "Permits nothing now",
  fresh: (id) => `+ Record for “${id}”, of whom nothing is recorded`,
  choose: "Choose a patient on the left.",
  patient: (id) => `Patient ${id}`,
  chain: "The record",
  verify: "Check the whole record",
  verifying: "Checking …",
  whole: (rows) => `✓ Unaltered: all ${rows} entries are as they were recorded.`,
  altered: (n) => `✕ Altered: ${n} faults`,
  headText: "Digest of the last entry, to be noted elsewhere:",
  standing: "What is permitted now",
  purpose: "Purpose",
  now: "Now",
  period: "Period",
  recorded: "Recorded",
  action: "Action",
  by: "By",
  grant: "Grant …",
  withdraw: "Withdraw …",
  refuse: "Refuse …",
  withdrawAll: "Say no to everything …",
  models: "Models that saw this patient",
  modelsLooking: "Looking through the models …",
  modelsNone: "No model here saw this patient.",
  modelsUnknown: "The service was started without folders of models, so it cannot tell.",
  model: "Model",
  did: "What it did",
  dataset: "Data set",
  signed: "Signed evidence",
  yes: "yes",
  no: "no",
  history: "History",
  historyNone: "Nothing was ever recorded.",
  entryNo: "No.",
  source: "Source",
  byHand: "by hand",
  decision: "Decision",
  from: "From",
  until: "Until",
  always: "without bound",
  since: (day) => `from ${day}`,
  upTo: (day) => `until ${day}`,
  between: (a, b) => `${a} to ${b}`,
  dayHint: "Days in UTC, both included. Leave empty for no bound.",
  grantTitle: "Grant",
  grantConfirm: "Grant",
  withdrawTitle: "Withdraw consent?",
  withdrawConfirm: "Withdraw",
  refuseTitle: "Refuse consent?",
  refuseConfirm: "Refuse",
  purposes: "Purposes",
  cancel: "Cancel",
  chooseOne: "Choose one purpose at least.",
  follows: "What follows",
  followsBatch: "From its next batch on, every training for these purposes leaves this patient out.",
  followsLearnt: (n) =>
    n === 1
      ? "1 model has learnt from this patient and keeps what it learnt until it is made to forget:"
      : `${n} models have learnt from this patient and keep what they learnt until they are made to forget:`,
  followsNone: "No model here has learnt from this patient.",
  followsForget: "Whoever runs the models makes one forget with “qinjing unlearn”.",
  followsHistory: "What was permitted before stays in the history.",
  done: (what, row) => `Recorded as entry ${row}: ${what}`,
  withdrawn: (list) => `no consent to ${list}`,
  granted: (list) => `consent to ${list}`,
  sessionEnded: "You were signed out. Give the token again.",
  roles: {
    ethics: "Ethics office", reader: "Reader", patient: "Patient", annotator: "Annotator", admin: "Administrator",
  },
  purposeNames: {
    care: "Care", research: "Research", commercial: "Commercial use",
    federated: "Training with other hospitals", export: "Handing data on",
  },
  states: {
    permit: "✓ Permitted", deny: "✕ Denied", later: "◷ Not yet", ended: "◷ Ended", none: "– Nothing said",
  },
  decisions: { permit: "Permit", deny: "Deny" },
  codes: {
    token: "This token opens nothing. It may be mistyped, have ended, or have been taken back.",
    wait: "Too many wrong tokens came from here. Wait five minutes, then try again.",
    forbidden: "Your token does not allow this.",
    period: "The period must end after it begins.",
    unavailable: "The record cannot be reached just now. Nothing was changed.",
    busy: "Somebody else is looking through the models. Try again in a minute.",
    network: "The service cannot be reached. Check the connection.",
    fault: "Something failed, and it is our fault. Ask whoever runs the service.",
  },
  how: [],
};

const CHINESE = {
  title: "同意管理",
  skip: "跳到主要内容",
  other: "English",
  otherLong: "English: switch to English",
  themeLight: "浅色",
  themeDark: "深色",
  themeLong: "外观",
  clinic: "工作列表",
  leave: "退出",
  entry: "患者知情同意",
  entryText: "患者和伦理办公室可在此查看、授予和撤回数据使用的同意。",
  token: "令牌",
  elsewhere: "使用医院账号登录",
  signIn: {
    refused: "该医院账号在此没有权限：请联系管理员。",
    expired: "登录超时：请重试。",
    unavailable: "暂时无法连接医院账号系统：请重试，或使用令牌。",
  },
  tokenHint: "由医院发放，只需输入一次；一段时间不操作后会自动退出。",
  enter: "登录",
  search: "查找患者",
  more: "显示更多",
  found: (n, more) => (n ? `找到 ${n} 位${more ? "以上" : ""}` : "没有找到"),
  permits: (list) => `同意：${list}`,
  permitsNothing: "目前没有任何同意",
  fresh: (id) => `+ 为“${id}”登记（尚无记录）`,
  choose: "请在左侧选择一位患者。",
  patient: (id) => `患者 ${id}`,
  chain: "记录",
  verify: "核验全部记录",
  verifying: "正在核验……",
  whole: (rows) => `✓ 未被改动：全部 ${rows} 条与登记时一致。`,
  altered: (n) => `✕ 已被改动：${n} 处问题`,
  headText: "最后一条的摘要，请另行记下：",
  standing: "目前的同意情况",
  purpose: "用途",
  now: "目前",
  period: "期限",
  recorded: "登记时间",
  action: "操作",
  by: "登记人",
  grant: "授予…",
  withdraw: "撤回…",
  refuse: "拒绝…",
  withdrawAll: "全部不同意…",
  models: "用过该患者数据的模型",
  modelsLooking: "正在查找模型……",
  modelsNone: "这里没有模型用过该患者的数据。",
  modelsUnknown: "服务启动时没有指定模型文件夹，无法得知。",
  model: "模型",
  did: "如何使用",
  dataset: "数据集",
  signed: "有签名证据",
  yes: "是",
  no: "否",
  history: "历史",
  historyNone: "从未有过记录。",
  entryNo: "编号",
  source: "来源",
  byHand: "手工登记",
  decision: "决定",
  from: "自",
  until: "至",
  always: "不限",
  since: (day) => `自 ${day} 起`,
  upTo: (day) => `至 ${day}`,
  between: (a, b) => `${a} 至 ${b}`,
  dayHint: "按协调世界时（UTC）计日，含首尾两天；留空表示不限。",
  grantTitle: "授予同意",
  grantConfirm: "授予",
  withdrawTitle: "确定撤回同意？",
  withdrawConfirm: "撤回",
  refuseTitle: "确定不同意？",
  refuseConfirm: "不同意",
  purposes: "用途",
  cancel: "取消",
  chooseOne: "请至少选择一种用途。",
  follows: "后果",
  followsBatch: "从下一个批次起，用于这些用途的所有训练都不再使用该患者的数据。",
  followsLearnt: (n) => `有 ${n} 个模型已用该患者的数据训练过，在执行遗忘之前仍保留所学内容：`,
  followsNone: "这里没有模型用该患者的数据训练过。",
  followsForget: "模型管理人员可用 “qinjing unlearn” 让模型遗忘。",
  followsHistory: "以前的同意仍保留在历史记录中。",
  done: (what, row) => `已登记为第 ${row} 条：${what}`,
  withdrawn: (list) => `不同意${list}`,
  granted: (list) => `同意${list}`,
  sessionEnded: "您已退出，请重新输入令牌。",
  roles: { ethics: "伦理办公室", reader: "阅片医师", patient: "患者", annotator: "标注者", admin: "管理员" },
  purposeNames: {
    care: "诊疗", research: "科研", commercial: "商业用途", federated: "与其他医院联合训练",
    export: "向外提供数据",
  },
  states: { permit: "✓ 同意", deny: "✕ 不同意", later: "◷ 尚未生效", ended: "◷ 已到期", none: "– 未表态" },
  decisions: { permit: "同意", deny: "不同意" },
  codes: {
    token: "该令牌无效：可能输入有误、已过期或已被收回。",
    wait: "错误次数过多，请等待五分钟后再试。",
    forbidden: "您的令牌无权执行此操作。",
    period: "结束日期必须晚于开始日期。",
    unavailable: "目前无法访问记录，没有做任何更改。",
    busy: "有人正在查找模型，请一分钟后再试。",
    network: "无法连接服务，请检查网络。",
    fault: "服务出错，请联系管理员。",
  },
  how: [
    [/^fold (\d+) learnt from it$/, "第 $1 折用其训练"],
    [/^fold (\d+) was measured on it$/, "第 $1 折用其评测"],
    [/^learnt from it$/, "用其训练"],
    [/^was measured on it$/, "用其评测"],
    [/^began from (.+), which learnt from it$/, "以 $1 为起点，后者用其训练过"],
    [/^began from (.+), which had learnt from it then$/, "以 $1 为起点，后者当时用其训练过"],
  ],
};

const TABLES = { en: ENGLISH, zh: CHINESE };
let language = "en";

export function speak(chosen) {
  language = chosen in TABLES ? chosen : "en";
}

export function spoken() {
  return language;
}

// Adds another page's words; a table within is added to, not replaced.
export function extend(words) {
  for (const [tongue, more] of Object.entries(words)) {
    for (const [key, value] of Object.entries(more)) {
      const own = TABLES[tongue][key];
      TABLES[tongue][key] = value?.constructor === Object ? { ...own, ...value } : value;
    }
  }
}

// A sentence, or what a function of the table makes of the values.
export function say(key, ...values) {
  const word = TABLES[language][key];
  return typeof word === "function" ? word(...values) : word;
}

// A word of a table within the table: say.of("states", "deny").
say.of = (key, name) => TABLES[language][key][name] ?? name;

// What a person reads of a refusal.
export function sentence(refusal) {
  return say("codes")[refusal.code] ?? refusal.message;
}

export function list(purposes) {
  return purposes.map((one) => say.of("purposeNames", one)).join(language === "zh" ? "、" : ", ");
}

// What a model did with a case, which the service says in English.
export function how(text) {
  for (const [pattern, words] of TABLES[language].how) {
    if (pattern.test(text)) return text.replace(pattern, words);
  }
  return text;
}

export function period(row) {
  const { first_day: first, last_day: last } = row;
  if (first && last) return say("between", first, last);
  return first ? say("since", first) : last ? say("upTo", last) : say("always");
}
