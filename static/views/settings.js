/** settings.js: mode, model and the options that the agent advertises, as small menus. */
import { h, setText } from './dom.js';
import { icon } from './icons.js';
import { menuButton } from './menu.js';

export class SettingsBar {
  /** `on`: mode(id), model(id), option(key, value) */
  constructor(on) {
    this.on = on;
    this.el = h('div.settings', { role: 'group', 'aria-label': 'Agent settings' });
    this.shown = '';
  }

  update({ modes, models, configOptions }) {
    const groups = this.#groups(modes, models, configOptions ?? []);
    // Rebuilt only when something changed: an open menu must not vanish under the pointer.
    const shown = JSON.stringify(groups);
    if (shown === this.shown) return;
    this.shown = shown;
    this.el.replaceChildren(...groups.map((group) => this.#picker(group)));
  }

  /** ACP's config options cover modes and models where an agent has them there. */
  #groups(modes, models, options) {
    const groups = [];
    const has = (category) => options.some((option) => option.category === category);
    if (modes?.availableModes?.length && !has('mode')) {
      groups.push({ kind: 'mode', name: 'Mode', value: modes.currentModeId, choices: modes.availableModes.map(({ id, name, description }) => ({ value: id, name, description })) });
    }
    if (models?.availableModels?.length && !has('model')) {
      groups.push({ kind: 'model', name: 'Model', value: models.currentModelId, choices: models.availableModels.map(({ modelId, name, description }) => ({ value: modelId, name, description })) });
    }
    for (const option of options) {
      const base = { kind: 'option', key: option.id, name: option.name, value: option.currentValue };
      if (option.type === 'boolean') groups.push({ ...base, choices: [{ value: true, name: 'On' }, { value: false, name: 'Off' }] });
      else if (Array.isArray(option.options)) {
        const choices = option.options.flatMap((one) => (one.options ? [{ heading: one.name }, ...one.options] : [one]));
        if (choices.length) groups.push({ ...base, choices });
      }
    }
    return groups;
  }

  #picker(group) {
    const current = group.choices.find((choice) => choice.value === group.value);
    const words = h('span');
    setText(words, group.choices[0]?.value === true ? `${group.name}: ${current?.name ?? '?'}` : (current?.name ?? group.name));
    const button = h('button.picker', { 'aria-label': `${group.name}: ${current?.name ?? 'not set'}`, title: group.name }, words, icon('chevron'));
    menuButton(
      button,
      () => [
        { heading: group.name },
        ...group.choices.map((choice) =>
          choice.heading ? choice : { label: choice.name ?? String(choice.value), detail: choice.description, checked: choice.value === group.value, onselect: () => choice.value !== group.value && this.#choose(group, choice.value) },
        ),
      ],
      { label: group.name },
    );
    return h('span', {}, button);
  }

  #choose(group, value) {
    if (group.kind === 'mode') this.on.mode(value);
    else if (group.kind === 'model') this.on.model(value);
    else this.on.option(group.key, value);
  }
}
