"""The words of a case's report, in English and Chinese."""

from __future__ import annotations

from collections.abc import Mapping

LANGUAGES = ("en", "zh")

WORDS: Mapping[str, Mapping[str, str]] = {
    "title": {"en": "Case report", "zh": "病例报告"},
    "tool": {
        "en": "Product class: tool. Annotation only: it holds no measurement and no finding.",
        "zh": "产品类别：工具类。仅供标注：不含测量结果，不含诊断结论。",
    },
    "analysis": {
        "en": "Product class: analysis. Measurements for a reader to judge: no diagnosis.",
        "zh": "产品类别：分析类。测量结果供医师判断，不构成诊断。",
    },
    "diagnosis": {
        "en": "Product class: diagnosis. Findings with their confidence, to be confirmed by a "
        "named reader.",
        "zh": "产品类别：诊断类。结论附置信度，须由具名医师确认。",
    },
    "unconfirmed": {"en": "Not confirmed by a reader.", "zh": "尚未经医师确认。"},
    "confirmed": {"en": "Confirmed by {reader}.", "zh": "确认医师：{reader}。"},
    "case": {"en": "Case", "zh": "病例"},
    "summary": {"en": "In words", "zh": "摘要"},
    "findings": {"en": "Findings", "zh": "结论"},
    "confidence": {"en": "confidence {percent} %", "zh": "置信度 {percent} %"},
    "structures": {"en": "Structures", "zh": "结构"},
    "lesions": {"en": "Pieces", "zh": "连通区域"},
    "changes": {"en": "Change since {date}", "zh": "与{date}比较"},
    "first date": {"en": "the first date", "zh": "首次检查"},
    "pictures": {"en": "Key images", "zh": "关键图像"},
    "model": {"en": "The model, its use and its limits", "zh": "模型、预期用途与局限"},
    "name": {"en": "Structure", "zh": "结构"},
    "side": {"en": "Side", "zh": "侧别"},
    "left": {"en": "left", "zh": "左"},
    "right": {"en": "right", "zh": "右"},
    "middle": {"en": "middle", "zh": "中线"},
    "count": {"en": "Pieces", "zh": "数目"},
    "volume": {"en": "Volume, ml", "zh": "体积 (ml)"},
    "axes": {"en": "Long × short axis, mm", "zh": "长径 × 短径 (mm)"},
    "diameter": {"en": "3-D diameter, mm", "zh": "三维最大径 (mm)"},
    "grey": {"en": "Mean ± SD", "zh": "均值 ± 标准差"},
    "before": {"en": "Before, ml", "zh": "前次 (ml)"},
    "after": {"en": "Now, ml", "zh": "本次 (ml)"},
    "percent": {"en": "Change", "zh": "变化"},
    "fate": {"en": "What became of it", "zh": "转归"},
    "new": {"en": "new", "zh": "新发"},
    "gone": {"en": "gone", "zh": "消失"},
    "grown": {"en": "grown", "zh": "增大"},
    "shrunk": {"en": "shrunk", "zh": "缩小"},
    "steady": {"en": "within the uncertainty", "zh": "在不确定范围内"},
    "absent": {"en": "{name}: none.", "zh": "{name}：无。"},
    "one": {
        "en": "{name}: {volume} ml ({low} to {high}), at most {diameter} mm across.",
        "zh": "{name}：{volume} ml（{low} 至 {high}），最大径 {diameter} mm。",
    },
    "several": {
        "en": "{name}: {count} pieces, together {volume} ml ({low} to {high}); none is more than "
        "{diameter} mm across.",
        "zh": "{name}：{count} 处，合计 {volume} ml（{low} 至 {high}）；"
        "最大径均不超过 {diameter} mm。",
    },
    "recist": {
        "en": "Sum of the long axes of {count} target lesions (RECIST 1.1): {before} mm before, "
        "{after} mm now ({percent}).",
        "zh": "{count} 个靶病灶长径之和（RECIST 1.1）：前次 {before} mm，"
        "本次 {after} mm（{percent}）。",
    },
    "frames": {
        "en": "The two scans do not share a frame of reference: what moved between them is taken "
        "for change unless they were registered.",
        "zh": "两次检查的参考坐标系不同：若未配准，位移会被当作变化。",
    },
    "interval": {
        "en": "The interval of a volume: {how}. Diameters run from border to border; the long and "
        "the short axis lie in one axial slice.",
        "zh": "体积区间的含义：{how}。径线自边缘量至边缘；长径与短径位于同一横断面。",
    },
    "border": {
        "en": "the border moved by half a voxel",
        "zh": "边界移动半个体素",
    },
    "confidence map": {
        "en": "what the model's own confidence leaves open",
        "zh": "模型自身置信度所留的余地",
    },
    "picture": {
        "en": "{name}: the axial slice in which it is largest, without and with the outline.",
        "zh": "{name}：面积最大的横断面，左为原图，右为轮廓。",
    },
    "more": {"en": "{count} more are in case.json.", "zh": "其余 {count} 项见 case.json。"},
    "intended use": {"en": "Intended use", "zh": "预期用途"},
    "limits": {"en": "Limits", "zh": "局限"},
    "unstated": {"en": "The model's card does not say.", "zh": "模型卡未说明。"},
    "research": {
        "en": "Research use only. This is not a medical device; no clinical decision may rest on "
        "it.",
        "zh": "仅供科研使用。本软件不是医疗器械，不得作为临床决策依据。",
    },
}  # fmt: skip


def words(language: str) -> dict[str, str]:
    """Return every word of the report in one language of `LANGUAGES`."""
    return {key: text[language] for key, text in WORDS.items()}
